"""What went by wavelet is archived as residuals: with its packet, each is the original again."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from archive_end import ArchiveLink, archive_once, archived, assert_originals, told
from telescope_end import CAMERA, Telescope, wait_until
from tiny_raw import packet_names, raw_bytes, write_raw

from prepipe.cluster.originals import exposures_landed, original_packets, restore_file
from prepipe.codec.fits_bytes import scan_fits
from prepipe.codec.packet import read_header
from prepipe.link.local import LocalLink
from prepipe.model import Stage
from prepipe.store import Journal
from prepipe.telescope import Happening, originals, plan_archive

CCDS = (25, 1, 44)
SHAPE = (160, 128)
"""Large enough for a residual to save something."""


@pytest.fixture
def telescope(telescope: Telescope) -> Telescope:
    """One that sends by wavelet."""
    telescope.configure(pack={"codec": "wavelet"})
    return telescope


@pytest.fixture
def link(telescope: Telescope) -> ArchiveLink:
    return ArchiveLink(telescope.landing)


@pytest.fixture(params=["cutout", "history_reduced"])
def real_raw(request: pytest.FixtureRequest, telescope: Telescope, shared_data: Path) -> Path:
    """A real raw exposure: 62 small cut-outs with guide chips between, or nine larger ones."""
    source = shared_data / "decam_raw" / f"{request.param}_c4d_200306_000415_ori.fits.fz"
    path = telescope.raw / "raw.fits.fz"
    path.write_bytes(source.read_bytes())
    assert telescope.push().succeeded
    return path


def pushed(telescope: Telescope, *numbers: int, **options: object) -> list[Path]:
    told = {"shape": SHAPE, **options}
    raws = [write_raw(telescope.raw, number, **told) for number in numbers]
    assert telescope.push().succeeded
    return raws


def codecs(telescope: Telescope) -> set[str]:
    return {read_header(path).codec for path in (telescope.landing / "archive").glob("*.packet")}


def change_journal(telescope: Telescope, statement: str) -> None:
    with sqlite3.connect(telescope.site.telescope.work / "journal.sqlite") as database:
        database.execute(statement)
    database.close()


def sent_again(telescope: Telescope, exposure: int) -> None:
    for row in telescope.journal.rows(exposure=exposure):
        telescope.journal.return_to(row.key, Stage.FOUND)
    assert telescope.push().succeeded


def test_residuals_arrive_that_with_their_packets_are_the_originals(telescope: Telescope) -> None:
    raws = pushed(telescope, 1, 2)
    report = archive_once(telescope)
    assert (report.archived, report.residuals, report.waiting, report.failures) == (6, 6, 0, [])
    assert codecs(telescope) == {"residual"}
    assert_originals(raws, telescope.landing)


def test_a_real_raw_file_is_put_together_again_byte_for_byte(
    telescope: Telescope, real_raw: Path
) -> None:
    report = archive_once(telescope)
    assert (report.waiting, report.failures) == (0, [])
    (exposure,) = exposures_landed(telescope.landing)
    packets, missing = original_packets(exposure)
    assert missing == ()
    restored = restore_file(packets.values(), [telescope.landing], telescope.root / "out")
    content, found = real_raw.read_bytes(), restored.path.read_bytes()
    carried = [span for span in scan_fits(real_raw) if span.index not in restored.gaps]
    for was, now in zip(carried, scan_fits(restored.path), strict=True):
        assert found[now.header_offset : now.end] == content[was.header_offset : was.end]
    promised = range(len(carried), 71)
    assert restored.gaps == tuple(promised), "what the primary header tells of and is not here"


def test_what_nine_real_ccds_take_is_told_beforehand_within_a_quarter(
    telescope: Telescope, shared_data: Path
) -> None:
    source = shared_data / "decam_raw" / "history_reduced_c4d_200306_000415_ori.fits.fz"
    (telescope.raw / "raw.fits.fz").write_bytes(source.read_bytes())
    telescope.push()
    plan = plan_archive(telescope.journal, CAMERA, telescope.site.pack)
    assert [found.residual for found in plan.originals] == 9 * [True]
    assert plan.bytes == pytest.approx(archive_once(telescope).archived_bytes, rel=0.25)


def test_they_cost_less_of_the_line_than_the_originals(telescope: Telescope) -> None:
    pushed(telescope, 1)
    small = archive_once(telescope).archived_bytes
    telescope.configure(pack={"codec": "wavelet", "archive": "whole"})
    change_journal(telescope, "UPDATE ccds SET archived_at = NULL")
    report = archive_once(telescope)
    assert report.residuals == 0
    assert codecs(telescope) == {"none"}
    assert small < 0.95 * report.archived_bytes


def test_settings_that_changed_since_do_not_matter(telescope: Telescope) -> None:
    raws = pushed(telescope, 1)
    telescope.configure(pack={"codec": "wavelet", "preset": "precise", "fill": False})
    assert archive_once(telescope).residuals == 3
    assert_originals(raws, telescope.landing)


def test_a_journal_that_does_not_know_what_was_asked_takes_the_settings(
    telescope: Telescope,
) -> None:
    raws = pushed(telescope, 1)
    change_journal(telescope, "UPDATE ccds SET asked = NULL")
    assert archive_once(telescope).residuals == 3
    assert_originals(raws, telescope.landing)


def test_where_the_packet_cannot_be_made_again_the_original_goes_whole_and_why_is_told(
    telescope: Telescope,
) -> None:
    raws = pushed(telescope, 1)
    change_journal(telescope, f"UPDATE ccds SET file_checksum = '{'0' * 32}'")
    report = archive_once(telescope)
    assert (report.archived, report.residuals, report.waiting) == (3, 0, 0)
    assert codecs(telescope) == {"none"}
    (text,) = told(telescope, Happening.WHOLE)
    assert "its packet of the night cannot be made again" in text
    assert_originals(raws, telescope.landing)


def test_settings_that_no_program_knows_any_more_let_the_original_go_whole(
    telescope: Telescope,
) -> None:
    pushed(telescope, 1)
    change_journal(telescope, """UPDATE ccds SET asked = '{"sharpness": 3}'""")
    report = archive_once(telescope)
    assert (report.archived, report.residuals) == (3, 0)


def test_where_a_residual_would_save_nothing_the_original_goes_whole(
    telescope: Telescope, monkeypatch: pytest.MonkeyPatch
) -> None:
    raws = pushed(telescope, 1)
    monkeypatch.setattr(originals, "residual_of", lambda *_: None)
    report = archive_once(telescope)
    assert (report.archived, report.residuals) == (3, 0)
    (text,) = told(telescope, Happening.WHOLE)
    assert "or not be smaller" in text
    assert_originals(raws, telescope.landing)


def test_zeros_and_what_went_without_a_loss_need_nothing(telescope: Telescope) -> None:
    pushed(telescope, 1, obstype="zero")
    assert archive_once(telescope).archived == 0


def test_a_packet_sent_anew_with_other_settings_gets_a_new_residual(
    telescope: Telescope, link: ArchiveLink
) -> None:
    raws = pushed(telescope, 1)
    archive_once(telescope, link)
    telescope.configure(pack={"codec": "wavelet", "preset": "precise"})
    sent_again(telescope, 1)
    report = archive_once(telescope, link)
    assert (report.archived, report.residuals) == (3, 3)
    assert_originals(raws, telescope.landing)


def test_a_packet_sent_anew_as_it_was_keeps_its_residual(
    telescope: Telescope, link: ArchiveLink
) -> None:
    raws = pushed(telescope, 1)
    archive_once(telescope, link)
    sent_again(telescope, 1)
    assert archive_once(telescope, link).archived == 0
    assert_originals(raws, telescope.landing)


def test_a_rewritten_raw_file_gets_a_new_packet_and_a_new_residual(telescope: Telescope) -> None:
    (raw,) = pushed(telescope, 1)
    archive_once(telescope)
    raw.write_bytes(raw_bytes(1, seed=5, shape=SHAPE))
    telescope.push()
    assert archive_once(telescope).residuals == 3
    assert_originals([raw], telescope.landing)


def test_killed_at_any_moment_and_started_again_all_originals_are_there(
    telescope: Telescope,
) -> None:
    numbers = range(1, 10)  # enough that some are left after each of three kills
    raws = [write_raw(telescope.raw, number, CCDS, shape=SHAPE) for number in numbers]
    assert telescope.push().succeeded
    victim = Path(__file__).with_name("archive_victim.py")
    words = [sys.executable, str(victim), str(telescope.root), "wavelet"]
    log = telescope.root / "sent.log"
    rng = random.Random(2)
    for kill in range(4):
        with subprocess.Popen(words) as process:
            if kill < 3:
                before = len(archived(telescope))
                wait_until(lambda before=before: len(archived(telescope)) > before, 60.0)
                time.sleep(rng.uniform(0.0, 0.1))
                process.send_signal(signal.SIGKILL)
        assert process.returncode == (-signal.SIGKILL if kill < 3 else 0)
    assert archived(telescope) == packet_names(numbers)
    assert_originals(raws, telescope.landing)
    assert set(log.read_text().split()) == packet_names(numbers)
    sent = log.read_text().split()
    assert len(sent) == len(CCDS) * len(numbers), "what had arrived was not sent again"
    journal = Journal(telescope.site.telescope.work / "journal.sqlite")
    assert journal.originals() == []
    assert all(row.archive_base == row.file_checksum for row in journal.rows())
    journal.close()


def test_a_link_that_holds_an_older_original_of_that_name_takes_the_new_one(
    telescope: Telescope,
) -> None:
    raws = pushed(telescope, 1)
    (telescope.landing / "archive").mkdir()
    for name in packet_names([1]):
        (telescope.landing / "archive" / name).write_bytes(b"what an earlier version sent")
    assert archive_once(telescope, LocalLink(telescope.landing)).residuals == 3
    assert_originals(raws, telescope.landing)

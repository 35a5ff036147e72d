"""The originals of what was sent with a loss follow by day."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from datetime import datetime
from pathlib import Path

import pytest
from archive_end import (
    DAY,
    LOSSY,
    NIGHT,
    ArchiveLink,
    archive_of,
    archive_once,
    archived,
    assert_originals,
    in_background,
    told,
)
from astropy.io import fits
from journal_rows import row
from telescope_end import CAMERA, Telescope, exposures_of, wait_until
from tiny_raw import packet_names, raw_bytes, write_raw

from prepipe.cameras import load_camera
from prepipe.codec.packet import read_header
from prepipe.config import Method, Push
from prepipe.errors import ConfigError, LinkError
from prepipe.link.local import LocalLink
from prepipe.model import Night, Stage
from prepipe.store import Journal
from prepipe.telescope import Happening, plan_archive
from prepipe.telescope.queue import archive_urgency, urgency


@pytest.fixture
def telescope(telescope: Telescope) -> Telescope:
    """One that sends science frames with a loss."""
    telescope.configure(pack=LOSSY)
    return telescope


@pytest.fixture
def link(telescope: Telescope) -> ArchiveLink:
    return ArchiveLink(telescope.landing)


def pushed(telescope: Telescope, *numbers: int, **options: object) -> list[Path]:
    raws = [write_raw(telescope.raw, number, **options) for number in numbers]
    assert telescope.push().succeeded
    return raws


def test_the_originals_of_what_went_with_a_loss_arrive_bit_for_bit(telescope: Telescope) -> None:
    raws = pushed(telescope, 1, 2)
    report = archive_once(telescope)
    assert (report.archived, report.waiting, report.failures) == (6, 0, [])
    assert report.archived_bytes == sum(
        path.stat().st_size for path in (telescope.landing / "archive").iterdir()
    )
    assert_originals(raws, telescope.landing)


def test_real_originals_hold_the_very_bytes_of_the_raw_file(
    telescope: Telescope, shared_data: Path
) -> None:
    source = shared_data / "decam_raw" / "cutout_c4d_200306_000415_ori.fits.fz"
    content = source.read_bytes()
    (telescope.raw / "raw.fits.fz").write_bytes(content)
    telescope.push()
    report = archive_once(telescope)
    assert (report.archived, report.waiting, report.failures) == (62, 0, [])
    for path in (telescope.landing / "archive").iterdir():
        packet = read_header(path)
        assert path.read_bytes()[-packet.payload_bytes :] in content


def test_the_packets_of_the_same_names_stay_as_they_are(telescope: Telescope) -> None:
    pushed(telescope, 1)
    before = {path.name: path.read_bytes() for path in telescope.landing.glob("*.packet")}
    archive_once(telescope)
    after = {path.name: path.read_bytes() for path in telescope.landing.glob("*.packet")}
    assert before == after


def test_a_push_finds_nothing_to_send_again_after_the_originals_came(telescope: Telescope) -> None:
    pushed(telescope, 1)
    archive_once(telescope)
    (telescope.landing / "done" / "ut200306").mkdir(parents=True)
    for path in telescope.landing.glob("*.packet"):
        path.rename(telescope.landing / "done" / "ut200306" / path.name)
    telescope.configure(push={"method": "end-of-night"})
    report = telescope.push()
    assert (report.sent, report.succeeded) == (0, True)


@pytest.mark.parametrize("codec", ["none", "rice"])
def test_what_went_without_a_loss_is_not_sent_twice(telescope: Telescope, codec: str) -> None:
    telescope.configure(pack={"codec": codec, "qstep": None})
    pushed(telescope, 1)
    assert archive_once(telescope).archived == 0
    assert archived(telescope) == set()


def test_calibrations_of_a_lossy_site_need_no_original(telescope: Telescope) -> None:
    pushed(telescope, 1, obstype="zero")
    assert archive_once(telescope).archived == 0


def test_the_newest_exposure_goes_first(telescope: Telescope, link: ArchiveLink) -> None:
    pushed(telescope, 1, 2, 3)
    link.concurrency = 1
    archive_once(telescope, link)
    assert exposures_of(link.sent) == [3, 3, 3, 2, 2, 2, 1, 1, 1]
    assert link.urgencies == sorted(link.urgencies, reverse=True)


@pytest.mark.parametrize("method", Method)
def test_every_packet_of_a_push_is_more_urgent(method: Method) -> None:
    settings = Push(method=method, exposures=tuple(range(10_000)))
    assert archive_urgency(row(9_999, 1)) < urgency(settings, row(9_999, 1))
    assert archive_urgency(row(9_999, 1)) < urgency(settings, row(0, 1))


def test_nothing_is_left_here_of_what_was_archived(telescope: Telescope) -> None:
    pushed(telescope, 1)
    archive_once(telescope)
    assert list((telescope.root / "telescope" / "archive").iterdir()) == []


def test_a_bounded_number_of_originals_lies_here(telescope: Telescope, link: ArchiveLink) -> None:
    pushed(telescope, 1, 2, 3)
    most = 0

    def count() -> None:
        nonlocal most
        most = max(most, len(list((telescope.root / "telescope" / "archive").glob("*.packet"))))
        time.sleep(0.02)

    link.before = count
    assert archive_once(telescope, link).archived == 9
    assert 1 <= most <= 4


def test_a_second_run_sends_nothing_again(telescope: Telescope, link: ArchiveLink) -> None:
    pushed(telescope, 1)
    archive_once(telescope, link)
    report = archive_once(telescope, link)
    assert (report.archived, report.waiting) == (0, 0)
    assert len(link.sent) == 3
    assert link.places == {"archive"}


def test_only_one_night_can_be_asked_for(telescope: Telescope) -> None:
    pushed(telescope, 1, 1 + 1440)
    report = archive_once(telescope, night=Night.parse("ut200306"))
    assert (report.archived, report.waiting) == (3, 0)
    assert archived(telescope) == packet_names([1])


def test_by_night_nothing_is_sent_and_it_says_until_when(telescope: Telescope) -> None:
    pushed(telescope, 1)
    report = archive_once(telescope, clock=lambda: NIGHT)
    assert (report.archived, report.waiting) == (0, 3)
    (failure,) = report.failures
    assert failure.what == "3 originals still wait"
    assert "until 2020-03-06 10:41 UTC" in failure.reason
    assert told(telescope, Happening.WAITS) == [failure.reason]


def test_told_to_it_sends_by_night(telescope: Telescope) -> None:
    pushed(telescope, 1)
    assert archive_once(telescope, clock=lambda: NIGHT, any_hour=True).archived == 3


def test_where_the_place_of_the_telescope_is_not_known_any_hour_will_do(
    telescope: Telescope, tmp_path: Path
) -> None:
    pushed(telescope, 1)
    path = tmp_path / "camera.toml"
    path.write_text('name = "decam"\npixel_scale = 0.26\n[cards]\nccd = "CCDNUM"\n')
    report = archive_once(telescope, clock=lambda: NIGHT, camera=load_camera(str(path)))
    assert report.archived == 3


def test_when_day_comes_it_begins_and_when_night_falls_it_finishes_what_is_under_way(
    telescope: Telescope, link: ArchiveLink
) -> None:
    pushed(telescope, 1, 2)
    hour: list[datetime] = [NIGHT]
    let_go = threading.Event()
    under_way = threading.Semaphore(0)

    def hold() -> None:
        under_way.release()
        let_go.wait(10)

    link.concurrency = 2
    link.before = hold
    stop, thread = in_background(archive_of(telescope, link, clock=lambda: hour[0]))
    try:
        wait_until(lambda: len(told(telescope, Happening.WAITS)) == 1)
        assert archived(telescope) == set()
        hour[0] = DAY
        for _ in range(2):
            assert under_way.acquire(timeout=10)
        hour[0] = NIGHT
        let_go.set()
        wait_until(lambda: len(told(telescope, Happening.WAITS)) == 2)
        assert len(archived(telescope)) == 2
        wait_until(lambda: len(told(telescope, Happening.ARCHIVED)) == 2)
        time.sleep(0.2)
        assert len(archived(telescope)) == 2, "nothing more begins"
    finally:
        stop.set()
        thread.join()


def test_nothing_new_is_sent_while_a_push_has_packets_waiting(
    telescope: Telescope, link: ArchiveLink
) -> None:
    raws = pushed(telescope, 1, 2)
    link.concurrency = 1

    def an_exposure_comes() -> None:
        if len(link.sent) == 1:
            for found in telescope.journal.rows(exposure=1):
                telescope.journal.return_to(found.key, Stage.FOUND)

    link.before = an_exposure_comes
    stop, thread = in_background(archive_of(telescope, link))
    try:
        wait_until(lambda: bool(told(telescope, Happening.WAITS)))
        assert len(link.sent) == 2
        assert "go first" in told(telescope, Happening.WAITS)[0]
        link.before = lambda: None
        telescope.push()
        wait_until(lambda: archived(telescope) == packet_names([1, 2]))
    finally:
        stop.set()
        thread.join()
    assert_originals(raws, telescope.landing)


def test_what_a_push_sends_meanwhile_is_found_at_the_next_look(telescope: Telescope) -> None:
    stop, thread = in_background(archive_of(telescope, LocalLink(telescope.landing)))
    try:
        (raw,) = pushed(telescope, 1)
        wait_until(lambda: len(told(telescope, Happening.ARCHIVED)) == 3)
    finally:
        stop.set()
        thread.join()
    assert_originals([raw], telescope.landing)


def test_a_raw_file_that_is_gone_is_named_once_and_the_others_go_on(telescope: Telescope) -> None:
    gone, kept = pushed(telescope, 2, 1)
    gone.unlink()
    report = archive_once(telescope)
    assert (report.archived, report.waiting) == (3, 3)
    assert [failure.what for failure in report.failures] == [str(gone)]
    assert "does not exist" in report.failures[0].reason
    assert len(told(telescope, Happening.FAILED)) == 1
    assert_originals([kept], telescope.landing)


def test_a_raw_file_that_was_rewritten_is_named_and_its_new_original_follows_its_new_packet(
    telescope: Telescope,
) -> None:
    (raw,) = pushed(telescope, 1)
    raw.write_bytes(raw_bytes(1, seed=5))
    report = archive_once(telescope)
    assert report.archived == 0
    assert [failure.what for failure in report.failures] == [str(raw)]
    assert "rewritten" in report.failures[0].reason
    telescope.push()
    assert archive_once(telescope).archived == 3
    assert_originals([raw], telescope.landing)


def test_a_raw_file_rewritten_after_it_was_archived_is_archived_anew(telescope: Telescope) -> None:
    (raw,) = pushed(telescope, 1)
    archive_once(telescope)
    raw.write_bytes(raw_bytes(1, seed=5))
    telescope.push()
    assert archive_once(telescope).archived == 3
    assert_originals([raw], telescope.landing)


def test_a_raw_file_rewritten_while_its_original_was_under_way_is_archived_anew(
    telescope: Telescope, link: ArchiveLink
) -> None:
    (raw,) = pushed(telescope, 1, ccds=(25,))

    def rewrite() -> None:
        raw.write_bytes(raw_bytes(1, (25,), seed=5))
        telescope.push()
        link.before = lambda: None

    link.before = rewrite
    archive_once(telescope, link)
    archive_once(telescope, link)
    assert_originals([raw], telescope.landing)


def test_a_missing_file_that_is_back_is_taken_at_the_next_look(telescope: Telescope) -> None:
    (raw,) = pushed(telescope, 1)
    elsewhere = raw.rename(telescope.root / "unmounted")
    stop, thread = in_background(archive_of(telescope, LocalLink(telescope.landing)))
    try:
        wait_until(lambda: bool(told(telescope, Happening.FAILED)))
        elsewhere.rename(raw)
        wait_until(lambda: archived(telescope) == packet_names([1]))
    finally:
        stop.set()
        thread.join()
    assert len(told(telescope, Happening.FAILED)) == 1


def test_a_ccd_that_cannot_be_read_does_not_keep_the_others(telescope: Telescope) -> None:
    (raw,) = pushed(telescope, 1)
    with fits.open(raw, disable_image_compression=True) as hdus:
        damaged = hdus["X1"].fileinfo()["datLoc"] + 300
    state = raw.stat()
    content = bytearray(raw.read_bytes())
    content[damaged : damaged + 600] = b"\xff" * 600
    raw.write_bytes(content)
    telescope.journal.remember_file(raw, len(content), raw.stat().st_mtime_ns)
    assert len(content) == state.st_size
    report = archive_once(telescope)
    assert {failure.what for failure in report.failures} == {"decam 1 CCD 1"}
    assert archived(telescope) == packet_names([1], (25, 44))


def test_a_link_that_stays_down_is_told_once_and_given_up(
    telescope: Telescope, link: ArchiveLink
) -> None:
    pushed(telescope, 1)
    link.before = lambda: LinkError("host: no answer; see whether the network is up")
    report = archive_once(telescope, link)
    assert (report.archived, report.waiting) == (0, 3)
    (failure,) = report.failures
    assert "network is up" in failure.reason
    assert len(told(telescope, Happening.OBSTACLE)) == 1
    assert archive_once(telescope).archived == 3


def test_a_link_that_comes_back_is_used_again(telescope: Telescope, link: ArchiveLink) -> None:
    pushed(telescope, 1)
    failures = iter([LinkError("host: away")] * 2)
    link.before = lambda: next(failures, None)
    assert archive_once(telescope, link).archived == 3
    assert len(told(telescope, Happening.CLEARED)) == 1


def test_a_stop_lets_what_is_under_way_arrive(telescope: Telescope, link: ArchiveLink) -> None:
    pushed(telescope, 1, 2)
    link.concurrency = 1
    begun = threading.Event()

    def slow() -> None:
        begun.set()
        time.sleep(0.3)

    link.before = slow
    stop, thread = in_background(archive_of(telescope, link))
    begun.wait(10)
    stop.set()
    thread.join()
    assert len(link.sent) == 1
    assert len(telescope.journal.originals()) == 5


def test_two_archives_do_not_work_in_one_directory(telescope: Telescope, link: ArchiveLink) -> None:
    stop, thread = in_background(archive_of(telescope, link, clock=lambda: NIGHT))
    try:
        wait_until(lambda: bool(told(telescope, Happening.WAITS)))
        with pytest.raises(ConfigError, match="in use by process"):
            archive_once(telescope)
    finally:
        stop.set()
        thread.join()


def test_a_plan_tells_what_would_go_in_order_and_what_is_lost(telescope: Telescope) -> None:
    gone, *_ = pushed(telescope, 2, 1, 3)
    gone.unlink()
    plan = plan_archive(telescope.journal, CAMERA, telescope.site.pack)
    assert [found.row.exposure.number for found in plan.originals] == [3, 3, 3, 1, 1, 1]
    assert not any(found.residual for found in plan.originals)
    assert [failure.what for failure in plan.failures] == [str(gone)]
    assert archived(telescope) == set()


def test_killed_at_any_moment_and_started_again_nothing_is_lost_or_sent_twice(
    telescope: Telescope,
) -> None:
    numbers = range(1, 7)
    raws = [write_raw(telescope.raw, number, range(1, 6)) for number in numbers]
    assert telescope.push().succeeded
    wanted = packet_names(numbers, range(1, 6))
    victim = Path(__file__).with_name("archive_victim.py")
    log = telescope.root / "sent.log"
    rng = random.Random(1)
    for kill in range(6):
        with subprocess.Popen([sys.executable, str(victim), str(telescope.root)]) as process:
            if kill < 5:
                _wait_for_line(log)
                time.sleep(rng.uniform(0.0, 0.1))
                process.send_signal(signal.SIGKILL)
        assert process.returncode == (-signal.SIGKILL if kill < 5 else 0)
    assert archived(telescope) == wanted
    assert_originals(raws, telescope.landing)
    assert list((telescope.root / "telescope" / "archive").iterdir()) == []
    journal = Journal(telescope.site.telescope.work / "journal.sqlite")
    assert journal.originals() == []
    assert all(found.archived_at and found.archive_bytes for found in journal.rows())
    journal.close()
    sent = Counter(log.read_text().split())
    assert set(sent.values()) == {1}, "an original that had arrived was not sent again"


def _wait_for_line(log: Path) -> None:
    before = _lines(log)
    wait_until(lambda: _lines(log) > before, 60.0)


def _lines(log: Path) -> int:
    return len(log.read_text().splitlines()) if log.exists() else 0

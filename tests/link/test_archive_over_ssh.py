"""Originals over the ssh link, against a real SSH server with `prepipe receive`."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from private_sshd import PrivateSshd

from prepipe.cameras import load_camera
from prepipe.cluster.originals import original_of
from prepipe.codec.packet import read_header
from prepipe.config import Site
from prepipe.link.local import LocalLink
from prepipe.link.ssh import SshLink
from prepipe.store import Journal
from prepipe.telescope import Archive, Event, Happening, Push

CAMERA = load_camera("decam")
DAY = datetime(2020, 3, 6, 17, tzinfo=UTC)
CCDS = 9


@pytest.fixture
def landing(tmp_path: Path) -> Path:
    path = tmp_path / "far" / "landing"
    path.mkdir(parents=True)
    return path


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site.model_validate({"telescope": {"poll_s": 0.05}}).anchored(tmp_path)


@pytest.fixture
def journal(site: Site, raw: Path, landing: Path) -> Iterator[Journal]:
    """Of a telescope that has sent its exposure with a loss."""
    opened = Journal(site.telescope.work / "journal.sqlite")
    assert Push(site, opened, LocalLink(landing), CAMERA).run(once=True).succeeded
    yield opened
    opened.close()


def open_link(own_sshd: PrivateSshd, landing: Path) -> SshLink:
    return SshLink(own_sshd.settings(landing, rate=100.0, connections=2, timeout_s=60.0))


def archive(
    site: Site, journal: Journal, link: SshLink, tell: Callable[[Event], None] = lambda _: None
) -> Archive:
    return Archive(site, journal, link, CAMERA, tell, clock=lambda: DAY)


def crossed(link: SshLink) -> int:
    return sum(connection.sent_bytes for connection in link.state().connections)


def assert_originals(raw: Path, landing: Path) -> None:
    content = raw.read_bytes()
    with fits.open(raw) as hdus:
        pixels = {hdu.header["CCDNUM"]: hdu.data.copy() for hdu in hdus[1:]}
    originals = list((landing / "archive").iterdir())
    assert len(originals) == CCDS
    for path in originals:
        assert read_header(path).codec == "residual"
        original = original_of(path)
        assert original.image_header + original.payload in content
        np.testing.assert_array_equal(original.pixels(), pixels[original.packet.ccd.number])


def test_originals_arrive_bit_for_bit_and_do_not_cross_again_though_the_journal_lost_them(
    site: Site, journal: Journal, raw: Path, own_sshd: PrivateSshd, landing: Path
) -> None:
    link = open_link(own_sshd, landing)
    report = archive(site, journal, link).run(once=True)
    link.close()
    assert (report.archived, report.waiting, report.failures) == (CCDS, 0, [])
    assert_originals(raw, landing)
    with sqlite3.connect(site.telescope.work / "journal.sqlite") as database:
        database.execute("UPDATE ccds SET archived_at = NULL, archive_bytes = 0")
    database.close()
    link = open_link(own_sshd, landing)
    report = archive(site, journal, link).run(once=True)
    assert (report.archived, report.waiting, report.failures) == (CCDS, 0, [])
    assert crossed(link) == 0
    link.close()
    assert_originals(raw, landing)


def test_a_push_sends_nothing_again_for_an_original_is_no_packet(
    site: Site, journal: Journal, own_sshd: PrivateSshd, landing: Path
) -> None:
    link = open_link(own_sshd, landing)
    archive(site, journal, link).run(once=True)
    night = landing / "done" / "ut200306"
    night.mkdir(parents=True)
    for path in landing.glob("*.packet"):
        path.rename(night / path.name)
    held = link.inventory()
    link.close()
    assert {name: found.checksum for name, found in held.items()} == {
        row.packet: row.file_checksum for row in journal.rows()
    }


def test_a_server_that_goes_away_and_comes_back_costs_no_original(
    site: Site, journal: Journal, raw: Path, own_sshd: PrivateSshd, landing: Path
) -> None:
    away = threading.Event()

    def tell(event: Event) -> None:
        if event.what is Happening.ARCHIVED and not away.is_set():
            own_sshd.kill()
            away.set()

    link = open_link(own_sshd, landing)
    stop = threading.Event()
    work = archive(site, journal, link, tell)
    thread = threading.Thread(target=work.run, kwargs={"stop": stop})
    thread.start()
    try:
        assert away.wait(60)
        time.sleep(0.5)
        own_sshd.start()
        _wait_until(lambda: not journal.originals())
    finally:
        stop.set()
        thread.join()
        link.close()
    assert_originals(raw, landing)
    assert not list((landing / "archive").glob(".*"))


def _wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)

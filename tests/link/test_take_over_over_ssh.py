"""Pushes over the ssh link ask of each packet what the far side has, and for no inventory."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from private_sshd import PrivateSshd
from ssh_links import acknowledged, linked, wait_for

from prepipe.cameras import load_camera
from prepipe.config import Site
from prepipe.errors import LinkError
from prepipe.link.base import Held
from prepipe.link.protocol import CHUNK_BYTES
from prepipe.link.ssh import SshLink
from prepipe.model import Stage
from prepipe.store import Journal
from prepipe.telescope import Event, Happening, Push, Report

CCDS = 9


@pytest.fixture
def landing(tmp_path: Path) -> Path:
    path = tmp_path / "far" / "landing"
    path.mkdir(parents=True)
    return path


@pytest.fixture
def recent(raw: Path) -> Path:
    """A raw file that comes while pushes are at work, which do not ask about it for its age."""
    later = time.time() + 3600.0
    os.utime(raw, (later, later))
    return raw


@pytest.fixture(autouse=True)
def no_inventory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A far side whose inventory takes for ever."""

    def refuse(_: SshLink, since: int = 0) -> dict[str, Held]:
        raise LinkError("host: no inventory within 900 s")

    monkeypatch.setattr(SshLink, "inventory", refuse)


def host(root: Path, name: str) -> Site:
    """One of several that share the raw directory, with a directory of its own."""
    telescope = {"work": name, "share": "share", "poll_s": 0.05, "takeover_s": 1.0}
    site = Site.model_validate({"telescope": telescope, "pack": {"codec": "none"}})
    return site.anchored(root)


def push(site: Site, link: SshLink, events: list[Event]) -> Report:
    journal = Journal(site.telescope.work / "journal.sqlite")
    report = Push(site, journal, link, load_camera("decam"), events.append).run(once=True)
    assert {row.stage for row in journal.rows()} == {Stage.SENT}
    journal.close()
    return report


def make_large(raw: Path) -> None:
    """Let a raw file hold one CCD of 16 chunks that nothing compresses."""
    with fits.open(raw) as hdus:
        pixels = np.random.default_rng(1).integers(0, 60000, (2048, 1024)).astype(np.uint16)
        ccd = fits.ImageHDU(pixels, name="S29")
        ccd.header["CCDNUM"] = 25
        fits.HDUList([hdus[0], ccd]).writeto(raw.parents[1] / "large.fits")
    modified = raw.stat().st_mtime
    (raw.parents[1] / "large.fits").replace(raw)
    os.utime(raw, (modified, modified))


def die(root: Path) -> None:
    """Leave the claim as a host does that is killed with all of its exposure under way."""
    (claim,) = (root / "share").rglob("*.claim")
    claim.write_bytes(claim.read_bytes().replace(b"done", b"held"))


def test_a_push_sends_though_no_inventory_comes(
    tmp_path: Path, raw: Path, own_sshd: PrivateSshd, landing: Path
) -> None:
    with linked(own_sshd, landing) as link:
        report = push(host(tmp_path, "one"), link, [])
    assert (report.succeeded, report.sent, report.already_there) == (True, CCDS, 0)


def test_what_a_dead_host_had_sent_does_not_cross_again(
    tmp_path: Path, recent: Path, own_sshd: PrivateSshd, landing: Path
) -> None:
    with linked(own_sshd, landing) as link:
        push(host(tmp_path, "one"), link, [])
    die(tmp_path)
    lost = landing / "decam_00941420_25.packet"
    content = lost.read_bytes()
    lost.unlink()
    events: list[Event] = []
    with linked(own_sshd, landing) as link:
        report = push(host(tmp_path, "two"), link, events)
        assert acknowledged(link) == report.sent_bytes == len(content)
    assert (report.succeeded, report.sent, report.already_there) == (True, CCDS, CCDS - 1)
    assert lost.read_bytes() == content
    assert [event.what for event in events].count(Happening.TAKEN_OVER) == 1


def test_a_large_packet_of_a_dead_host_is_asked_for_before_any_of_it_is_sent(
    tmp_path: Path, recent: Path, own_sshd: PrivateSshd, landing: Path
) -> None:
    make_large(recent)
    with linked(own_sshd, landing) as link:
        push(host(tmp_path, "one"), link, [])
    die(tmp_path)
    with linked(own_sshd, landing) as link:
        report = push(host(tmp_path, "two"), link, [])
        crossed = sum(
            each.socket.acknowledged_bytes for each in link.state().connections if each.socket
        )
    assert (report.sent, report.already_there) == (1, 1)
    assert 0 < crossed < CHUNK_BYTES, "greetings and the offer, and no chunk"


def test_what_a_host_that_stops_had_sent_in_parts_another_completes(
    tmp_path: Path, recent: Path, own_sshd: PrivateSshd, landing: Path
) -> None:
    make_large(recent)
    stop = threading.Event()
    with linked(own_sshd, landing, rate=2.0) as link, ThreadPoolExecutor(1) as thread:
        site = host(tmp_path, "one")
        journal = Journal(site.telescope.work / "journal.sqlite")
        work = Push(site, journal, link, load_camera("decam"))
        running = thread.submit(work.run, stop=stop)
        wait_for(lambda: acknowledged(link) > 0)
        link.close()
        stop.set()
        running.result()
        before = acknowledged(link)
        journal.close()
    assert before > 0
    with linked(own_sshd, landing) as link:
        report = push(host(tmp_path, "two"), link, [])
        after = acknowledged(link)
    assert report.succeeded
    (packet,) = landing.iterdir()
    assert after <= packet.stat().st_size - before


def test_a_push_whose_journal_was_lost_sends_nothing_again(
    tmp_path: Path, raw: Path, own_sshd: PrivateSshd, landing: Path
) -> None:
    with linked(own_sshd, landing) as link:
        push(host(tmp_path, "one"), link, [])
    with linked(own_sshd, landing) as link:
        site = host(tmp_path, "afresh")
        alone = site.model_copy(
            update={"telescope": site.telescope.model_copy(update={"share": None})}
        )
        report = push(alone, link, [])
        assert (report.sent, report.already_there, report.sent_bytes) == (CCDS, CCDS, 0)
        assert acknowledged(link) == 0

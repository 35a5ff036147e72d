"""The telescope's end over a real SSH server that goes away and comes back."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from private_sshd import PrivateSshd, need_sshd

from prepipe.cameras import load_camera
from prepipe.config import Site
from prepipe.link.sftp import SftpLink
from prepipe.model import Stage
from prepipe.store import Journal
from prepipe.telescope import Event, Happening, Push


def test_a_night_goes_on_after_the_server_was_away(tmp_path: Path, shared_data: Path) -> None:
    need_sshd()
    home = tmp_path / "sshd"
    home.mkdir()
    server = PrivateSshd(home)
    raw = tmp_path / "raw"
    raw.mkdir()
    source = shared_data / "decam_raw" / "history_reduced_c4d_200306_000415_ori.fits.fz"
    (raw / "DECam_00941420.fits.fz").write_bytes(source.read_bytes())
    landing = tmp_path / "far" / "landing"
    landing.mkdir(parents=True)
    site = Site.model_validate({"telescope": {"poll_s": 0.1}, "pack": {"codec": "none"}})
    site = site.anchored(tmp_path)
    journal = Journal(site.telescope.work / "journal.sqlite")
    link = SftpLink(server.settings(landing))
    events: list[Event] = []
    stop = threading.Event()
    push = Push(site, journal, link, load_camera("decam"), events.append)
    thread = threading.Thread(target=push.run, kwargs={"stop": stop})
    thread.start()
    try:
        _wait_until(lambda: any(event.what is Happening.OBSTACLE for event in events))
        assert list(landing.iterdir()) == []
        server.start()
        _wait_until(lambda: len(journal.rows(Stage.SENT)) == 9)
    finally:
        stop.set()
        thread.join()
        link.close()
        server.kill()
    assert len(list(landing.glob("decam_00941420_??.packet"))) == 9
    assert [event.what for event in events].count(Happening.OBSTACLE) == 1
    assert journal.rows(Stage.QUARANTINED) == []
    journal.close()


def _wait_until(condition: object, seconds: float = 20.0) -> None:
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)

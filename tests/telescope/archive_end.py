"""A telescope that sends with a loss, and what is asked of its archive."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from astropy.io import fits
from telescope_end import CAMERA, Telescope

from prepipe.cluster.originals import original_of
from prepipe.link.base import Link
from prepipe.link.local import LocalLink
from prepipe.telescope import Archive, ArchiveReport, Happening

LOSSY = {"codec": "jpeg2000", "qstep": 0.0005}
DAY = datetime(2020, 3, 6, 17, tzinfo=UTC)
NIGHT = datetime(2020, 3, 6, 4, tzinfo=UTC)


class ArchiveLink(LocalLink):
    """Remembers what was asked of it; may be told to fail, or to do something first."""

    concurrency = 8

    def __init__(self, landing: Path) -> None:
        super().__init__(landing)
        self.sent: list[str] = []
        self.urgencies: list[int] = []
        self.places: set[str] = set()
        self.before: Callable[[], Exception | None] = lambda: None

    def send(self, packet: Path, urgency: int = 0, place: str = "") -> None:
        if error := self.before():
            raise error
        super().send(packet, urgency, place)
        self.sent.append(packet.name)
        self.urgencies.append(urgency)
        self.places.add(place)


def archive_of(telescope: Telescope, link: Link, **options: object) -> Archive:
    chosen: dict[str, object] = {"clock": lambda: DAY, **options}
    camera = chosen.pop("camera", CAMERA)
    work = Archive(
        telescope.site,
        telescope.journal,
        link,
        camera,
        telescope.events.append,
        **chosen,
    )
    work.look_s = 0.05
    return work


def archive_once(
    telescope: Telescope, link: Link | None = None, **options: object
) -> ArchiveReport:
    return archive_of(telescope, link or LocalLink(telescope.landing), **options).run(once=True)


def in_background(work: Archive) -> tuple[threading.Event, threading.Thread]:
    stop = threading.Event()
    thread = threading.Thread(target=work.run, kwargs={"stop": stop})
    thread.start()
    return stop, thread


def archived(telescope: Telescope) -> set[str]:
    """Names of the originals that are there; hidden files are what a kill left half written."""
    return {path.name for path in (telescope.landing / "archive").glob("[!.]*")}


def assert_originals(raws: Iterable[Path], landing: Path) -> None:
    """Whatever is in the archive has the pixels and the bytes of the raw file, bit for bit.

    Residuals have them with the packets that were sent before.
    """
    pixels, content = {}, b""
    for raw in raws:
        content += raw.read_bytes()
        with fits.open(raw) as hdus:
            for hdu in hdus[1:]:
                key = hdus[0].header["EXPNUM"], hdu.header["CCDNUM"]
                pixels[key] = hdu.data.copy()
    for path in (landing / "archive").glob("*.packet"):
        found = original_of(path)
        assert found.packet.codec == "none"
        original = pixels.pop((found.packet.exposure.number, found.packet.ccd.number))
        np.testing.assert_array_equal(found.pixels(), original)
        assert found.image_header + found.payload in content
    assert not pixels, "every CCD is there"


def told(telescope: Telescope, what: Happening) -> list[str]:
    return [event.text for event in telescope.events if event.what is what]

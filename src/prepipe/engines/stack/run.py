"""What the engines of hscPipe and the LSST stack share: one order's programs and its hints."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from astropy.coordinates import Angle
from astropy.io.fits import Header

from prepipe.engines.base import Order
from prepipe.engines.external import (
    Ran,
    own_directories,
    program_path,
    run_program,
    sourced_environment,
)
from prepipe.engines.raw import RawCcd
from prepipe.errors import ConfigError
from prepipe.model import PointingHint, WcsTry

__all__ = ["Programs", "moved", "point", "pointings", "told"]

USAGE = 2
"""Exit status of programs that do not understand their arguments."""

_POINTINGS = (("RA", "DEC"), ("RA2000", "DEC2000"), ("TELRA", "TELDEC"))
"""Cards of the pointing as sexagesimal text; the stack starts its astrometry from them."""


@dataclass(frozen=True)
class Programs:
    """The programs of a pipeline, as one order runs them.

    Parameters
    ----------
    environment : mapping
    scratch : Path
        The order's own directory, where they run and their log goes.
    ends_at : float
        By the monotonic clock; what runs then is killed.
    """

    environment: Mapping[str, str]
    scratch: Path
    ends_at: float

    @classmethod
    def of(cls, setup: Path | None, scratch: Path, limit_s: float) -> Programs:
        """Those that a file sets up, with so much time from now on."""
        return cls(_environment(setup, scratch), scratch, time.monotonic() + limit_s)

    @property
    def left_s(self) -> float:
        """The time that is left."""
        return max(self.ends_at - time.monotonic(), 1.0)

    def run(self, program: str, setting: str, *words: str) -> Ran:
        """Run a program to its end; its exit status and product are for the caller to judge.

        Raises
        ------
        ConfigError
            If there is no such program, or it does not understand its arguments.
        EngineError
            If it was killed at its limit.
        StorageError
        """
        path = program_path(program, self.environment, setting)
        runs = len(list(self.scratch.glob("log/*")))
        log = self.scratch / "log" / f"{runs:02d}-{Path(path).name}.txt"
        ran = run_program(
            [path, *words],
            log=log,
            limit_s=round(self.left_s, 1),
            environment=self.environment,
            directory=self.scratch,
        )
        if ran.status == USAGE:
            raise ConfigError(
                f"{setting}: {ran.program} does not understand {' '.join(words)}: {ran.tail}"
            )
        return ran


def _environment(setup: Path | None, scratch: Path) -> dict[str, str]:
    """The environment of an order's programs.

    Parameters
    ----------
    setup : Path or None
        File that bash sources; None takes this process's own environment.
    scratch : Path

    Raises
    ------
    ConfigError
        If the file cannot be sourced.
    StorageError
    """
    known = dict(os.environ) if setup is None else sourced_environment(setup)
    # every CCD has a worker already: threads of one would take the cores of another
    return {"OMP_NUM_THREADS": "1", **known, **own_directories(scratch)}


def pointings(order: Order) -> Iterator[PointingHint | None]:
    """Where to look for a CCD: as the header says, or as others told after that had failed."""
    if not order.hints:
        yield None
    told = set()
    for hint in order.hints:
        # the pipelines have no poorer fit to offer, so that a relaxed try would be the same again
        place = hint.east_arcsec, hint.north_arcsec
        if place not in told:
            told.add(place)
            yield hint


def told(hint: PointingHint | None, solved: bool) -> WcsTry:
    """How a try at a CCD went; every rung is told, so that none is tried for ever."""
    rung = "header" if hint is None else hint.rung
    return WcsTry(rung, False, solved, () if solved else ("NO_MATCH",))


def moved(raw: RawCcd, hint: PointingHint | None) -> RawCcd:
    """The raw CCD with its headers pointing where others found the field."""
    if hint is None:
        return raw
    primary, extension = raw.primary.copy(), raw.extension.copy()
    for header in (primary, extension):
        point(header, hint)
    return replace(raw, primary=primary, extension=extension, cards=None)


def point(header: Header, hint: PointingHint) -> None:
    """Turn the pointing that a header tells to where others found the field."""
    east, north = hint.east_arcsec / 3600.0, hint.north_arcsec / 3600.0
    ra, dec = header.get("CRVAL1"), header.get("CRVAL2")
    if isinstance(ra, float) and isinstance(dec, float):
        header["CRVAL1"] = (ra + east / max(math.cos(math.radians(dec)), 1e-6)) % 360.0
        header["CRVAL2"] = dec + north
    for ra_key, dec_key in _POINTINGS:
        try:
            right, up = Angle(header[ra_key], "hourangle"), Angle(header[dec_key], "deg")
        except (KeyError, ValueError, TypeError):
            continue
        turned = (right.degree + east / max(math.cos(up.radian), 1e-6)) % 360.0
        header[ra_key] = Angle(turned, "deg").to_string("hourangle", sep=":", precision=3, pad=True)
        header[dec_key] = Angle(up.degree + north, "deg").to_string(
            "deg", sep=":", precision=2, pad=True, alwayssign=True
        )

"""A sample of the night's packets is held against the originals, beside the work and below it.

Each check runs in a process of its own at the lowest priority: a thread that did it here would
hold the lock of the interpreter while packing and sending wait for it.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from types import TracebackType
from typing import Any

from prepipe.cameras import Camera, load_camera
from prepipe.codec import get_codec
from prepipe.codec.packet import read_header
from prepipe.compute.local import LocalCompute
from prepipe.config import Site
from prepipe.errors import PrepipeError
from prepipe.model import Exposure, Kind, Night
from prepipe.store import CcdRow, CheckRow, Journal
from prepipe.telescope.report import Event, Happening, unexpected
from prepipe.telescope.trial import Setting, Trial, read_subject, try_codec

__all__ = ["Checker"]

LOWEST_PRIORITY = 19
TIME_LIMIT_S = 300.0


@dataclass(frozen=True)
class _Order:
    """A packet to be checked, as a worker needs it."""

    raw: Path
    ccd: int
    camera: str
    setting: Setting
    supposed_fwhm_arcsec: float


@dataclass(frozen=True)
class _Check:
    """A check that runs."""

    row: CcdRow
    compute: LocalCompute
    future: Future[Trial]


class Checker:
    """Checks one CCD of the first exposure of a night, and of every so many after it.

    A check that failed, on a full disk or a frame that tells nothing, is tried again with the
    next exposure; after each further failure twice as many pass by, but never more than usual.
    Only packets with a loss are checked, of exposures of the sky: of others nothing is lost,
    which packing makes sure of. A context manager; leaving it ends a check that still runs.

    Parameters
    ----------
    site : Site
        ``pack.check_every`` says how often.
    camera : Camera
    journal : Journal
        Keeps what came out.
    packets : Path
        Where packets wait.
    tell : callable
        Is told what came out.
    """

    def __init__(
        self,
        site: Site,
        camera: Camera,
        journal: Journal,
        packets: Path,
        tell: Callable[[Event], None],
    ) -> None:
        self._site = site
        self._camera = camera
        self._journal = journal
        self._packets = packets
        self._tell = tell
        self._night: Night | None = None
        self._since: set[int] = set()
        self._last: int | None = None
        self._due = False
        self._failures = 0
        self._check: _Check | None = None

    def __enter__(self) -> Checker:
        self._night = None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End what runs; the next push checks again."""
        if self._check is not None:
            self._check.compute.close()
            self._check = None

    @property
    def is_busy(self) -> bool:
        """Whether a check runs."""
        return self._check is not None

    def offer(self, row: CcdRow) -> None:
        """A packet was made; check it if it is its turn.

        Whatever goes wrong here is told, and is no reason to stop.

        Parameters
        ----------
        row : CcdRow
            As the journal knows it now.
        """
        if not self._site.pack.check_every or row.exposure.kind is not Kind.OBJECT:
            return
        try:
            if get_codec(row.codec).lossless:
                return
            self._count(row.exposure)
            if self._due and not self.is_busy and row.key.ccd == self._chosen(row.exposure):
                self._begin(row)
        except PrepipeError as error:
            self._fail(row, str(error))

    def settle(self) -> None:
        """Take note of a check that has ended."""
        if self._check is None or not self._check.future.done():
            return
        check, self._check = self._check, None
        check.compute.close()
        try:
            trial = check.future.result()
            if trial.pixel_checksum != check.row.checksum:
                self._fail(check.row, "its raw file changed since it was packed")
                return
            self._journal.note_check(_row(check.row, trial))
        except PrepipeError as error:
            self._fail(check.row, str(error))
        except Exception as error:  # a check is no reason to stop a night
            self._fail(check.row, unexpected(error))
        else:
            self._failures = 0
            self._say(check.row, _sentence(trial))

    def _fail(self, row: CcdRow, why: str) -> None:
        self._failures += 1
        self._say(row, f"could not be checked: {why}")

    def _count(self, exposure: Exposure) -> None:
        """Whether it is time for another check; what earlier runs did counts, too."""
        if exposure.night != self._night:
            self._night = exposure.night
            self._due, self._last = True, None
            self._since.clear()
            if checks := self._journal.checks(exposure.night):
                rows = self._journal.rows(night=exposure.night, whole=False)
                self._due, self._last = False, checks[-1].exposure
                self._since = {
                    row.key.exposure for row in rows if (row.packed_at or 0.0) > checks[-1].at
                }
        self._since.add(exposure.number)
        self._since.discard(self._last or 0)
        self._due |= len(self._since) >= self._exposures_between

    @property
    def _exposures_between(self) -> int:
        """How many exposures after the last one tried the next is."""
        usual = self._site.pack.check_every
        return min(usual, 1 << (self._failures - 1)) if self._failures else usual

    def _chosen(self, exposure: Exposure) -> int | None:
        """Another CCD each time, none that is known to be dead."""
        dead = self._camera.dead_amplifiers
        rows = self._journal.rows(exposure=exposure.number)
        alive = [row.key.ccd for row in rows if not dead(row.key.ccd, exposure.start)]
        return random.Random(exposure.number).choice(sorted(alive)) if alive else None

    def _begin(self, row: CcdRow) -> None:
        asked = read_header(self._packets / row.packet).parameters.get("asked")
        setting = Setting(row.codec, asked if isinstance(asked, dict) else {})
        guess = self._site.calibration.seeing_guess_arcsec
        order = _Order(row.raw, row.key.ccd, self._site.camera, setting, guess)
        compute: LocalCompute = LocalCompute(1, _step_back, TIME_LIMIT_S)
        self._check = _Check(row, compute, compute.submit(_carry_out, order))
        self._due, self._last = False, row.exposure.number
        self._since.clear()

    def _say(self, row: CcdRow, what: str) -> None:
        self._tell(Event(Happening.CHECKED, f"{row.key} {what}", path=row.raw))


def _step_back() -> None:
    """Let everything else on this machine go first."""
    with suppress(OSError):
        os.nice(LOWEST_PRIORITY)


def _carry_out(order: _Order) -> Trial:
    camera = load_camera(order.camera)
    subject = read_subject(order.raw, order.ccd, camera, order.supposed_fwhm_arcsec)
    return try_codec(subject, order.setting)


def _row(row: CcdRow, trial: Trial) -> CheckRow:
    return CheckRow(
        night=row.exposure.night,
        camera=row.key.camera,
        exposure=row.key.exposure,
        ccd=row.key.ccd,
        codec=trial.setting.codec,
        parameters=dict(trial.setting.parameters),
        ratio=trial.ratio if isfinite(trial.ratio) else None,
        figures=_for_json(asdict(trial.fidelity)),
        at=time.time(),
    )


def _for_json(value: Any) -> Any:
    """Without NaN and infinity, which JSON does not know."""
    if isinstance(value, dict):
        return {name: _for_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_for_json(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def _sentence(trial: Trial) -> str:
    found = trial.fidelity
    return (
        f"checked, {trial.setting.label}: {trial.ratio:.1f}:1, fluxes scatter by "
        f"{found.scatter:.2f} of their noise, faint transients found {found.found:.2f} of "
        f"{found.found_original:.2f}"
    )

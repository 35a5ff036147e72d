"""photpipe as an engine: CCD by CCD, with the rescue ladder of the Deeper, Wider, Faster runs.

An order without hints is a plain run. One with hints takes up where that failed: for each rung
a run with the shift that other CCDs tell, then one with relaxed limits. Zeros and dome flats
are put where photpipe's own calibration stage finds them.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

from prepipe.cameras import Camera, load_camera
from prepipe.config import Photpipe, Rescue, Site
from prepipe.engines.base import Engine, Finding, Order, Outcome
from prepipe.engines.external import (
    Ran,
    copy_product,
    graded,
    own_directories,
    program_path,
    run_program,
    scratch_of,
    sourced_environment,
)
from prepipe.engines.names import IMAGE, product_path
from prepipe.engines.photpipe.files import Place, file_stem, own_data, place_raw, whole_image
from prepipe.engines.photpipe.view import WcsRow, east_north, ra_dec_shift, read_wcs_table
from prepipe.engines.raw import RawCcd, read_ccd
from prepipe.engines.sanity import exposure_flags
from prepipe.errors import ConfigError, EngineError, PrepipeError
from prepipe.files import storage_errors
from prepipe.model import Colour, Grade, Kind, PointingHint, Reduction, WcsTry
from prepipe.quality.rescue import ANY_CCD, NEIGHBOURS, SAME_CCD

__all__ = ["engine", "reduce"]

MAX_MAG = 14.2
"""Faintest catalogue star of a relaxed run, if the settings name none."""

RELAXED_STAGES = ("FLATTEN", "WCSNON")
"""FLATTEN makes the image pristine again before its WCS is tried once more."""

_MISSING = re.compile(r"Parameter\s+(\S+)\s+not found", re.IGNORECASE)


@dataclass(frozen=True)
class _Try:
    """One run of pipeloop.pl: who told its shift, and how its words differ from a plain run's."""

    rung: str
    relaxed: bool = False
    stages: tuple[str, ...] = ()
    keys: Mapping[str, str] | None = None


@dataclass(frozen=True)
class _Run:
    """All that the programs of one order have in common."""

    settings: Photpipe
    place: Place
    environment: Mapping[str, str]
    scratch: Path
    ends_at: float

    def carry_out(self, program: str, setting: str, words: list[str], log: str) -> Ran:
        path = program_path(program, self.environment, f"engines.photpipe.{setting}")
        left_s = self.ends_at - time.monotonic()
        ran = run_program(
            [path, "-red", self.place.night, str(self.place.ccd), *words],
            log=self.scratch / log,
            limit_s=max(left_s, 1.0),
            environment=self.environment,
            directory=self.scratch,
        )
        _require_parameters(ran)
        return ran


def engine(site: Site) -> Engine:
    """photpipe, as a site has set it up."""
    check = partial(_check, site.engines.photpipe, site.cluster.time_limit_s)
    return Engine("photpipe", reduce, wants_calibrations=True, check=check)


def reduce(order: Order) -> Outcome:
    """Let photpipe reduce the CCD of an order, and tell how its WCS came out.

    Raises
    ------
    InputError
        If the packet or file cannot be read.
    ConfigError
        If photpipe is not set up: a program, its environment or a parameter is missing.
    EngineError
        If it failed, hung, or left no image.
    StorageError
    """
    begun = time.monotonic()
    raw = read_ccd(order.source, order.hdu, _camera(order.camera))
    with scratch_of(order) as scratch:
        run = _prepare(order, raw, scratch)
        replaced = place_raw(raw, run.place, scratch)
        if replaced:
            run.place.discard((*run.settings.image_ends, *run.settings.catalogue_ends))
        if raw.exposure.kind in (Kind.ZERO, Kind.DOME_FLAT):
            seconds = {"place": time.monotonic() - begun}
            kept = Reduction(raw.exposure.number, raw.ccd.number, seconds=seconds)
            return Outcome(raw.exposure, raw.ccd, kept, Grade(Colour.GREEN))
        row, tries = _climb(run, order, replaced)
        product, catalogue = _take_products(run, order, raw)
    reduction = _summary(raw, row, tries, product, catalogue)
    reduction = replace(reduction, seconds={"photpipe": time.monotonic() - begun})
    return graded(order, raw, reduction)


def _prepare(order: Order, raw: RawCcd, scratch: Path) -> _Run:
    """The environment and the directories of an order."""
    settings = order.settings.photpipe
    number = str(raw.exposure.number).zfill(settings.expnum_digits)
    stem = file_stem(raw.exposure, raw.ccd.number, number)
    night, ccd = raw.exposure.night.ut_name, raw.ccd.number
    environment = _environment(settings) | own_directories(scratch)
    data = _shared_data(settings, environment)
    # what the others are calibrated with must lie where all of them look
    if settings.node_local and raw.exposure.kind not in (Kind.ZERO, Kind.DOME_FLAT):
        own = scratch / "data"
        own_data(data, own, night, ccd, settings.calibrations)
        data = own
    environment["PIPE_DATA"] = str(data)
    place = Place(data, night, ccd, number, stem)
    ends_at = time.monotonic() + settings.time_limit_s
    return _Run(settings, place, environment, scratch, ends_at)


def _environment(settings: Photpipe) -> dict[str, str]:
    sourced = settings.sourceme
    environment = dict(os.environ) if sourced is None else sourced_environment(sourced)
    if settings.instrument is not None:
        environment["PIPE_INSTRUMENT"] = settings.instrument
    # it runs where this worker is, whatever its environment says of batch systems
    return environment | {"PIPE_BATCH_SYSTEM": "NONE"}


def _shared_data(settings: Photpipe, environment: Mapping[str, str]) -> Path:
    told = settings.data or environment.get("PIPE_DATA")
    if not told:
        raise ConfigError(
            "photpipe's PIPE_DATA is not known: set engines.photpipe.data, or a sourceme file that "
            "sets it"
        )
    data = Path(told)
    if not data.is_dir():
        raise ConfigError(f"photpipe's PIPE_DATA, {data}, is no directory: make it, or mount it")
    return data


def _climb(run: _Run, order: Order, replaced: bool) -> tuple[WcsRow, tuple[WcsTry, ...]]:
    """Run photpipe until there is a WCS or the ladder ends; every rung is told of."""
    told: list[WcsTry] = []
    for count, one in enumerate(_tries(order)):
        row = _attempt(run, one, count, replaced and count == 0)
        told.append(WcsTry(one.rung, one.relaxed, row.solved, row.flags))
        if row.solved:
            return row, tuple(told)
    rungs = {attempt.rung for attempt in told}
    passed_over = {hint.rung for hint in order.hints} - rungs
    told[:0] = [WcsTry(rung, False, False, ("PASSED_OVER",)) for rung in sorted(passed_over)]
    return row, tuple(told)


def _tries(order: Order) -> Iterator[_Try]:
    """A plain run, or the ladder; any CCD is asked only where no neighbour can tell."""
    settings, rungs = order.settings.photpipe, {hint.rung for hint in order.hints}
    if not order.hints:
        yield _Try("header", stages=settings.stages)
    for hint in order.hints:
        if hint.rung == ANY_CCD and NEIGHBOURS in rungs:
            continue
        stages = RELAXED_STAGES if hint.relaxed else settings.stages
        keys = _hint_keys(hint, order.calibration.rescue)
        yield _Try(hint.rung, hint.relaxed, stages, keys)


def _hint_keys(hint: PointingHint, rescue: Rescue) -> dict[str, str]:
    keys = {"WCSNON_RADECSHIFT": ra_dec_shift(hint)}
    if not hint.relaxed:
        return keys
    own = hint.rung == SAME_CCD
    radius = rescue.search_arcsec if own else rescue.relaxed_search_arcsec
    faintest = MAX_MAG if rescue.relaxed_max_mag is None else rescue.relaxed_max_mag
    return keys | {
        "WCSNON_SEARCHRAD": f"{radius:g}",
        "WCSNON_CAT_MAXMAG": f"{faintest:g}",
        "WCSNON_RMSMAX": f"{rescue.relaxed_rms_mas / 1000.0:g}",
    }


def _attempt(run: _Run, one: _Try, count: int, afresh: bool) -> WcsRow:
    """One run, and what pipeview.pl tells of it."""
    ran = run.carry_out(
        run.settings.pipeloop, "pipeloop", _words(run, one, afresh), f"pipeloop.{count}.log"
    )
    if run.place.made(run.settings.image_ends) is None:
        raise ran.failure(f"left no image (exit status {ran.status})")
    words = ["-stage", "WCSNON", "-wcs", "-id", run.place.number]
    seen = run.carry_out(run.settings.pipeview, "pipeview", words, f"pipeview.{count}.log")
    if seen.status:
        raise seen.failure(f"failed with status {seen.status}")
    with storage_errors(seen.log):
        text = seen.log.read_text(errors="replace")
    try:
        row = read_wcs_table(text, run.place.stem)
    except EngineError as error:
        raise ran.failure(f"ended with status {ran.status}, and {error}") from error
    # a WCS that is told to have failed explains a status; nothing else does
    if ran.status and (row.solved or ran.status >= 128):
        raise ran.failure(f"failed with status {ran.status}")
    return row


def _words(run: _Run, one: _Try, afresh: bool) -> list[str]:
    """Arguments of pipeloop.pl after the night and the CCD."""
    keys: dict[str, str] = {}
    if run.settings.rms_max_arcsec is not None:
        keys["WCSNON_RMSMAX"] = f"{run.settings.rms_max_arcsec:g}"
    keys |= run.settings.keys
    keys |= one.keys or {}
    words = ["-id", run.place.number]
    if one.stages:
        words += ["-stage", ",".join(one.stages)]
    for key, value in keys.items():
        words += ["-k", key, value]
    # another raw file of that name came before: its results are of no use
    return [*words, "-redo" if afresh else "-redobad"]


def _require_parameters(ran: Ran) -> None:
    """See that photpipe knew all of its parameters: a missing one is no fault of the CCD."""
    with storage_errors(ran.log):
        found = _MISSING.search(ran.log.read_text(errors="replace"))
    if found is not None and ran.says("execution stopped"):
        raise ConfigError(
            f"{ran.program} stopped: parameter {found[1]} not found; set it in photpipe's own "
            "pipeline.params, or in engines.photpipe.keys"
        )


def _take_products(run: _Run, order: Order, raw: RawCcd) -> tuple[Path, Path | None]:
    """Copy image and source table to their final names."""
    made = run.place.made(run.settings.image_ends)
    if made is None:
        raise EngineError(f"photpipe left no image {run.place.stem} in its workspace")
    named = product_path(order.products, raw.exposure, raw.ccd.number)
    stem = named.name.removesuffix(IMAGE)
    catalogue = None
    table = run.place.made(run.settings.catalogue_ends)
    if table is not None:
        catalogue = named.with_name(stem + table[1])
        copy_product(table[0], catalogue)
    product = named.with_name(f"{stem}.fits")
    copy_product(whole_image(made[0]), product)
    return product, catalogue


def _summary(
    raw: RawCcd, row: WcsRow, tries: tuple[WcsTry, ...], product: Path, catalogue: Path | None
) -> Reduction:
    """What photpipe tells of a CCD; the worse axis is the residual, for its limits are by axis."""
    offset = east_north(row.shift_arcsec) if row.solved else None
    return Reduction(
        exposure=raw.exposure.number,
        ccd=raw.ccd.number,
        flags=(*exposure_flags(raw.exposure), *row.flags, "NOT_TOLD"),
        wcs_rms_mas=1000.0 * max(row.rms_arcsec) if row.solved else None,
        wcs_matches=row.stars,
        wcs_tries=tries,
        offset_east_arcsec=None if offset is None else offset[0],
        offset_north_arcsec=None if offset is None else offset[1],
        offset_arcsec=None if offset is None else math.hypot(*offset),
        product=str(product),
        catalogue=None if catalogue is None else str(catalogue),
    )


def _check(settings: Photpipe, worker_limit_s: float) -> tuple[Finding, ...]:
    """Whether photpipe can run on this machine."""
    try:
        environment = _environment(settings)
    except PrepipeError as error:
        return (Finding("environment", str(error), "look at engines.photpipe.sourceme"),)
    found = [
        _program(settings.pipeloop, environment, "pipeloop"),
        _program(settings.pipeview, environment, "pipeview"),
        _data(settings, environment),
    ]
    if settings.time_limit_s >= worker_limit_s:
        limits = f"time limit {settings.time_limit_s:g} s, a worker's {worker_limit_s:g} s"
        remedy = "set cluster.time_limit_s above engines.photpipe.time_limit_s"
        found.append(Finding("time limit", limits, remedy))
    return tuple(found)


def _program(program: str, environment: Mapping[str, str], setting: str) -> Finding:
    try:
        return Finding(setting, program_path(program, environment, f"engines.photpipe.{setting}"))
    except PrepipeError as error:
        return Finding(setting, str(error), "look at engines.photpipe.sourceme and its PATH")


def _data(settings: Photpipe, environment: Mapping[str, str]) -> Finding:
    try:
        data = _shared_data(settings, environment)
    except PrepipeError as error:
        return Finding("PIPE_DATA", str(error), "look at engines.photpipe.data")
    if not os.access(data, os.W_OK | os.X_OK):
        return Finding("PIPE_DATA", f"{data} cannot be written", "give this user the right to")
    return Finding("PIPE_DATA", str(data))


@lru_cache(maxsize=4)
def _camera(name: str) -> Camera:
    return load_camera(name)

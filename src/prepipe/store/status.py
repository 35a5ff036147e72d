"""Where every exposure is: both ends' journals seen as one.

Pure functions over what the journals give back; nothing here reads or writes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import attrgetter
from statistics import median
from typing import Any

from prepipe.model import Colour, Exposure, Night, Stage
from prepipe.store.checks import CheckRow, NightChecks, night_checks
from prepipe.store.rows import CcdKey, CcdRow, FileRow
from prepipe.store.transfers import NightTraffic, TransferRow, night_traffic

__all__ = [
    "CcdStatus",
    "ExposureStatus",
    "FileStatus",
    "NightStatus",
    "Originals",
    "Spread",
    "StageLatency",
    "night_status",
]

WAY = (Stage.FOUND, Stage.PACKED, Stage.SENT, Stage.LANDED, Stage.CALIBRATED)
"""The stages that a CCD passes when nothing goes wrong."""

AT_TELESCOPE = (Stage.FOUND, Stage.PACKED, Stage.SENT)
AT_CLUSTER = (Stage.FOUND, Stage.LANDED, Stage.CALIBRATED)
"""The cluster knows when a CCD was found if its packet told, else takes it for the landing."""

_Mark = tuple[Stage, Callable[[Any], float | None]]

TELESCOPE = "telescope"
CLUSTER = "cluster"


@dataclass(frozen=True)
class CcdStatus:
    """One CCD, as the end that has it now knows it.

    Parameters
    ----------
    key : CcdKey
    exposure : Exposure
    end : str
        ``"telescope"`` or ``"cluster"``.
    stage, failed_stage : Stage
        Where it is; for a quarantined one also how far it had come.
    tries : int
        Failures in a row.
    reason : str
        Why it failed, or what it waits for; empty if neither.
    grade : str or None
        Colour of the grade.
    reasons : tuple of str
        Why it was graded so.
    times : mapping
        When it reached each stage, seconds since 1970.
    seconds : mapping
        How long the work towards each stage took, s.
    product : str or None
        Path of the calibrated image.
    archived : bool or None
        Whether its original is in the archive; None where the packet is as good.
    preset : str
        Of the codec that packed it; empty if it has none.
    """

    key: CcdKey
    exposure: Exposure
    end: str
    stage: Stage
    failed_stage: Stage | None
    tries: int
    reason: str
    grade: str | None
    reasons: tuple[str, ...]
    times: Mapping[Stage, float]
    seconds: Mapping[str, float]
    product: str | None
    archived: bool | None = None
    preset: str = ""

    @property
    def failed(self) -> bool:
        """Whether it is in quarantine, or failed and will be tried again."""
        return self.stage is Stage.QUARANTINED or self.tries > 0

    @property
    def latency_s(self) -> float | None:
        """From the first sight of it to the calibrated CCD, s."""
        end = self.times.get(Stage.CALIBRATED)
        return None if end is None else end - min(self.times.values())


@dataclass(frozen=True)
class Originals:
    """Bit-exact originals of CCDs that were sent with a loss.

    Parameters
    ----------
    archived : int
        How many are in the archive.
    expected : int
        How many there will be.
    """

    archived: int
    expected: int

    @classmethod
    def of(cls, ccds: Iterable[CcdStatus]) -> Originals:
        """Originals of some CCDs."""
        told = [ccd.archived for ccd in ccds if ccd.archived is not None]
        return cls(sum(told), len(told))


@dataclass(frozen=True)
class ExposureStatus:
    """One exposure and its CCDs, in the order of their numbers."""

    exposure: Exposure
    ccds: tuple[CcdStatus, ...]

    @property
    def stages(self) -> dict[Stage, int]:
        """CCDs at each stage, in the order of the way."""
        counts = Counter(ccd.stage for ccd in self.ccds)
        return {stage: counts[stage] for stage in Stage if counts[stage]}

    @property
    def grades(self) -> dict[str, int]:
        """CCDs of each colour, best first."""
        counts = Counter(ccd.grade for ccd in self.ccds)
        return {colour.value: counts[colour] for colour in Colour if counts[colour]}

    @property
    def originals(self) -> Originals:
        """Originals of its CCDs."""
        return Originals.of(self.ccds)

    @property
    def latency_s(self) -> float | None:
        """Median over its calibrated CCDs, s."""
        known = [ccd.latency_s for ccd in self.ccds if ccd.latency_s is not None]
        return median(known) if known else None


@dataclass(frozen=True)
class FileStatus:
    """A file in quarantine, and at which end."""

    end: str
    path: str
    reason: str
    at: float


@dataclass(frozen=True)
class Spread:
    """Median and 95th percentile."""

    p50: float
    p95: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """Spread of some values; None if there are none."""
        if not values:
            return None
        ordered = sorted(values)
        return cls(_quantile(ordered, 0.5), _quantile(ordered, 0.95))


@dataclass(frozen=True)
class StageLatency:
    """How long CCDs took to a stage.

    Parameters
    ----------
    stage : Stage
    ccds : int
        How many reached it.
    since_last : Spread or None
        From the stage before, waiting included, s.
    work : Spread or None
        The work alone, s.
    """

    stage: Stage
    ccds: int
    since_last: Spread | None
    work: Spread | None


@dataclass(frozen=True)
class NightStatus:
    """All that `prepipe status` tells.

    Parameters
    ----------
    exposures : tuple of ExposureStatus
        Newest first.
    failing : tuple of CcdStatus
        CCDs that failed: the quarantined ones, and those that will be tried again.
    files : tuple of FileStatus
        Files in quarantine.
    latency : Spread or None
        From found to calibrated, s.
    stages : tuple of StageLatency
    traffic : tuple of NightTraffic
        What crossed, newest night first.
    checks : tuple of NightChecks
        What packing cost the packets that were checked, newest night first.
    night : Night or None
        The only night that it tells of.
    quarantined_elsewhere : int
        CCDs of other nights that are in quarantine.
    """

    exposures: tuple[ExposureStatus, ...]
    failing: tuple[CcdStatus, ...]
    files: tuple[FileStatus, ...]
    latency: Spread | None
    stages: tuple[StageLatency, ...]
    traffic: tuple[NightTraffic, ...] = ()
    checks: tuple[NightChecks, ...] = ()
    night: Night | None = None
    quarantined_elsewhere: int = 0

    @property
    def totals(self) -> dict[Stage, int]:
        """CCDs at each stage, all exposures together."""
        counts = Counter(ccd.stage for exposure in self.exposures for ccd in exposure.ccds)
        return {stage: counts[stage] for stage in Stage if counts[stage]}

    @property
    def presets(self) -> dict[str, int]:
        """CCDs packed by each preset, that of the last one packed first."""
        at = Stage.PACKED
        packed = [
            (ccd.times[at], ccd.preset)
            for exposure in self.exposures
            for ccd in exposure.ccds
            if ccd.preset and at in ccd.times
        ]
        return dict(Counter(preset for _, preset in sorted(packed, reverse=True)))

    @property
    def originals(self) -> Originals:
        """Originals of all exposures together."""
        return Originals.of(ccd for exposure in self.exposures for ccd in exposure.ccds)


def night_status(
    telescope: Iterable[CcdRow] = (),
    cluster: Iterable[CcdRow] = (),
    telescope_files: Iterable[FileRow] = (),
    cluster_files: Iterable[FileRow] = (),
    transfers: Iterable[TransferRow] = (),
    checks: Iterable[CheckRow] = (),
) -> NightStatus:
    """See both ends' journals as one.

    Parameters
    ----------
    telescope, cluster : iterable of CcdRow
        What each end knows; either may be empty.
    telescope_files, cluster_files : iterable of FileRow
        Files in quarantine at each end.
    transfers : iterable of TransferRow
        How exposures crossed.
    checks : iterable of CheckRow
        Packets that were held against their originals.
    """
    there = {_key(row): row for row in cluster}
    here = {_key(row): row for row in telescope}
    ccds = [_merged(here.get(key), there.get(key)) for key in here | there]
    files = [_file(TELESCOPE, row) for row in telescope_files]
    files += [_file(CLUSTER, row) for row in cluster_files]
    latencies = [ccd.latency_s for ccd in ccds if ccd.latency_s is not None]
    exposures = _by_exposure(ccds)
    return NightStatus(
        exposures=exposures,
        failing=tuple(ccd for found in exposures for ccd in found.ccds if ccd.failed),
        files=tuple(sorted(files, key=lambda file: -file.at)),
        latency=Spread.of(latencies),
        stages=_stage_latencies(ccds),
        traffic=night_traffic(transfers),
        checks=night_checks(checks),
    )


def _quantile(ordered: Sequence[float], part: float) -> float:
    """Value below which a part of some lie; between two of them, in proportion."""
    place, last = part * (len(ordered) - 1), len(ordered) - 1
    below = int(place)
    above = min(below + 1, last)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def _key(row: CcdRow) -> tuple[str, int, int]:
    return row.key.camera, row.key.exposure, row.key.ccd


def _merged(here: CcdRow | None, there: CcdRow | None) -> CcdStatus:
    # What has landed is there, whatever the telescope's end still believes.
    row = there or here
    assert row is not None
    seconds = {**(here.seconds if here else {}), **(there.seconds if there else {})}
    return CcdStatus(
        key=row.key,
        exposure=row.exposure,
        end=CLUSTER if row is there else TELESCOPE,
        stage=row.stage,
        failed_stage=row.failed_stage,
        tries=row.tries,
        reason=row.reason,
        grade=row.grade if row.stage is Stage.CALIBRATED else None,
        reasons=row.reasons,
        times=_times(there, _PASSED_AT_CLUSTER) | _times(here, _PASSED_AT_TELESCOPE),
        seconds=seconds,
        product=row.reduction.get("product"),
        archived=here.archived_at is not None if here and here.is_lossy else None,
        preset=here.preset if here else "",
    )


def _times(row: CcdRow | None, passed: Mapping[Stage, Sequence[_Mark]]) -> dict[Stage, float]:
    """When a CCD reached those of an end's stages that it has not been sent back from."""
    if row is None:
        return {}
    marks = [(stage, of(row)) for stage, of in passed[row.failed_stage or row.stage]]
    return {stage: at for stage, at in marks if at is not None}


def _passed(stages: Sequence[Stage]) -> dict[Stage, Sequence[_Mark]]:
    """Which of an end's stages are behind a CCD at each stage, with what gives their times."""
    marks = [(stage, attrgetter(f"{stage.value}_at")) for stage in stages]
    return {
        stage: marks[: stages.index(stage) + 1] if stage in stages else marks[:1] for stage in Stage
    }


_PASSED_AT_TELESCOPE = _passed(AT_TELESCOPE)
_PASSED_AT_CLUSTER = _passed(AT_CLUSTER)


def _by_exposure(ccds: Iterable[CcdStatus]) -> tuple[ExposureStatus, ...]:
    groups: dict[tuple[str, int], list[CcdStatus]] = {}
    for ccd in ccds:
        groups.setdefault((ccd.key.camera, ccd.key.exposure), []).append(ccd)

    def place(group: list[CcdStatus]) -> tuple[float, int, str]:
        exposure = group[0].exposure
        return -exposure.start.timestamp(), -exposure.number, exposure.camera

    return tuple(
        ExposureStatus(group[0].exposure, tuple(sorted(group, key=lambda ccd: ccd.key.ccd)))
        for group in sorted(groups.values(), key=place)
    )


def _file(end: str, row: FileRow) -> FileStatus:
    return FileStatus(end, row.path, row.reason, row.at)


def _stage_latencies(ccds: Sequence[CcdStatus]) -> tuple[StageLatency, ...]:
    latencies = []
    for before, stage in pairwise(WAY):
        arrived = [ccd for ccd in ccds if stage in ccd.times]
        waits = [ccd.times[stage] - ccd.times[before] for ccd in arrived if before in ccd.times]
        work = [ccd.seconds[stage.value] for ccd in arrived if stage.value in ccd.seconds]
        latencies.append(StageLatency(stage, len(arrived), Spread.of(waits), Spread.of(work)))
    return tuple(latencies)

"""Where work runs: how quickly it begins, in what order, and what a bad night does to it.

    python benchmarks/compute.py [--quick] [--json] [--only PART ...]

Batch work goes to a real Slurm of four nodes on this machine (see ``scheduling/slurm.py``); its
CCDs take 0.6 s without a core, so that eight of them run side by side anywhere. In the night, 40
exposures of 16 CCDs land one every 5 s while a worker, a job, a node, the controller, the daemon,
the broker and all jobs are killed. The last part calibrates 62 simulated DECam CCDs on two cores,
masters and reference catalogue at hand, from the first packet in the landing directory to the last
product; workers are warm.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scheduling import exposure62, ingest, work
from scheduling.night import run_night
from scheduling.slurm import Slurm

from prepipe.compute import Compute, LocalCompute
from prepipe.compute.batch import BatchCompute
from prepipe.config import Compute as Settings

Row = dict[str, Any]
PARTS = ("slurm", "local", "ingest", "night", "exposure62")
LOW = 100
HIGH = 3


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a short night, fewer CCDs simulated")
    parser.add_argument("--json", action="store_true", help="one JSON object with rows")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="prepipe-bench-") as name:
        rows = list(measure(Path(name), options.only, quick=options.quick))
    if options.json:
        print(json.dumps({"rows": rows}, indent=2))
    else:
        for row in rows:
            print(f"{row['name']:24s} {row['value']:10.3f} {row['unit']}")


def measure(directory: Path, parts: list[str], *, quick: bool) -> Iterator[Row]:
    """All rows."""
    if {"slurm", "night"} & set(parts):
        slurm = Slurm(directory / "slurm")
        try:
            if "slurm" in parts:
                yield from on_slurm(directory)
            if "night" in parts:
                yield from a_bad_night(directory / "night", slurm, quick=quick)
        finally:
            slurm.stop()
    if "local" in parts:
        compute = LocalCompute(2)
        yield row("dispatch_ms.local", dispatch_ms(compute), "ms")
        yield row("lows_first.local", lows_first(compute, directory / "local"), "")
        compute.close()
    if "ingest" in parts:
        exposures = 4 if quick else 20
        rate = ingest.ccds_a_second(directory / "ingest", exposures)
        yield row("ingest_ccds_s", rate, "CCDs/s")
    if "exposure62" in parts:
        yield row("exposure62_s", exposure62.seconds(directory / "exposure", quick=quick), "s")


def on_slurm(directory: Path) -> Iterator[Row]:
    """How quickly, and in what order, work begins in a job that is there."""
    settings = Settings(
        place="slurm", queue="realtime", address="127.0.0.1", cores=2, memory_gb=0, jobs=1
    )
    compute = BatchCompute(settings, directory / "dispatch")
    try:
        yield row("dispatch_ms.slurm", dispatch_ms(compute), "ms")
        yield row("lows_first", lows_first(compute, directory / "slurm-order"), "")
    finally:
        compute.close()


def dispatch_ms(compute: Compute, times: int = 200) -> float:
    """Median from submitting to starting on a warm worker, ms."""
    compute.submit(work.started, None).result(timeout=120)
    took = []
    for _ in range(times):
        at = time.time()
        took.append(compute.submit(work.started, None).result(timeout=60) - at)
    return 1e3 * statistics.median(took)


def lows_first(compute: Compute, path: Path) -> int:
    """Of 100 waiting orders, how many begin before the last of 3 urgent ones that come later."""
    waiting = [compute.submit(work.note_start, (path, "low", 0.1), urgency=1.0) for _ in range(LOW)]
    time.sleep(0.5)
    before = len(path.read_text().splitlines())
    urgent = [
        compute.submit(work.note_start, (path, "high", 0.1), urgency=2.0) for _ in range(HIGH)
    ]
    for future in (*waiting, *urgent):
        future.result(timeout=120)
    begun = path.read_text().splitlines()[before:]
    last = max(place for place, name in enumerate(begun) if name == "high")
    # those that began while the urgent ones were on their way were not passed over
    return max(0, begun[:last].count("low") - compute.slots)


def a_bad_night(directory: Path, slurm: Slurm, *, quick: bool) -> Iterator[Row]:
    """Forty exposures, everything dies once."""
    directory.mkdir()
    exposures, ccds = (16, 8) if quick else (40, 16)
    told = run_night(directory, slurm, exposures, ccds)
    for fault in told.faults:
        print(fault, file=sys.stderr)
    yield row("night.asked", told.asked, "CCDs")
    yield row("night.done", told.done, "CCDs")
    yield row("night.twice", told.twice, "CCDs in the store")
    yield row("night.ended_twice", told.ended_twice, "CCDs by workers")
    yield row("night.missed", told.missed, "faults that found nothing to harm")
    yield row("night.left", len(told.left), "processes and jobs")
    yield row("latency_s.p50", told.p50_s, "s")
    yield row("latency_s.p90", told.p90_s, "s")


def row(name: str, value: float, unit: str) -> Row:
    return {"name": name, "value": round(float(value), 4), "unit": unit}


if __name__ == "__main__":
    sys.exit(main())

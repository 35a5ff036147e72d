"""The reference store: how fast it is built, and what a CCD's look into it costs.

    python benchmarks/refcat.py [--quick] [--json]

CPU time of this process, medians over the places looked at, on made-up stars as dense as at
30 degrees of galactic latitude and as in the bulge. The first look at a place reads its
partition, the next ones find it in memory. The peer is pyarrow, asked for the same box of a
Parquet file sorted by declination.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import dataset, parquet

from prepipe.calibrate.sky.refcat import ReferenceSource
from prepipe.engines.references.build import build_store, find_sources
from prepipe.engines.references.source import load_reference

RADIUS_DEG = 0.18
"""What a CCD of DECam may have seen: half its diagonal and the search around it."""

SIDE_DEG = 3.0
CENTRE = (270.0, -30.0)
DENSITIES = {"sparse": 5_000, "dense": 160_000}
Row = dict[str, Any]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer places")
    parser.add_argument("--json", action="store_true", help="one JSON object with rows")
    options = parser.parse_args()
    rows = []
    for name, density in DENSITIES.items():
        with tempfile.TemporaryDirectory(prefix="prepipe-bench-") as work:
            rows += measure(Path(work), name, density, 9 if options.quick else 49)
    if options.json:
        print(json.dumps({"rows": rows}, indent=2))
    else:
        for row in rows:
            print(f"{row['name']:40s} {row['value']:10.3f} {row['unit']}")


def measure(work: Path, name: str, density: int, places: int) -> list[Row]:
    """Build a store, and look at some places in it, twice."""
    table = _stars(density)
    parquet.write_table(table, work / "stars.parquet")
    begin = time.process_time()
    build_store(find_sources([work / "stars.parquet"]), work / "store")
    built = time.process_time() - begin
    store = load_reference(work / "store")
    rng = np.random.default_rng(2)
    inner = 0.5 * SIDE_DEG - 0.3
    looks = [(CENTRE[0] + a, CENTRE[1] + d) for a, d in rng.uniform(-inner, inner, (places, 2))]
    # Twice at each place, as a worker looks at one field all night.
    first, again = zip(*([_look(store, at), _look(store, at)] for at in looks), strict=True)
    peer = [_milliseconds(lambda at=at: _with_pyarrow(work / "stars.parquet", *at)) for at in looks]
    return [
        _row(f"build.{name}", table.num_rows / built / 1e6, "million rows/core-s"),
        _row(f"lookup_first_ms.{name}", max(first), "core-ms"),
        _row(f"lookup_ms.{name}", statistics.median(again), "core-ms"),
        _row(f"peer_pyarrow_ms.{name}", statistics.median(peer), "core-ms"),
    ]


def _stars(density: int) -> pa.Table:
    rng = np.random.default_rng(1)
    count = int(density * SIDE_DEG**2)
    dec = np.sort(CENTRE[1] + rng.uniform(-0.5 * SIDE_DEG, 0.5 * SIDE_DEG, count))
    columns = {
        "source_id": np.arange(count),
        "ra": CENTRE[0] + rng.uniform(-0.5 * SIDE_DEG, 0.5 * SIDE_DEG, count),
        "dec": dec,
        "pmra": rng.normal(0.0, 5.0, count),
        "pmdec": rng.normal(0.0, 5.0, count),
        "ref_epoch": np.full(count, 2016.0),
        "phot_g_mean_mag": rng.uniform(14.0, 21.0, count).astype(np.float32),
        "phot_bp_mean_mag": rng.uniform(14.5, 21.5, count).astype(np.float32),
        "phot_rp_mean_mag": rng.uniform(13.5, 20.5, count).astype(np.float32),
    }
    return pa.table(columns)


def _with_pyarrow(path: Path, ra: float, dec: float) -> pa.Table:
    half_ra = RADIUS_DEG / np.cos(np.radians(dec))
    inside = (dataset.field("dec") > dec - RADIUS_DEG) & (dataset.field("dec") < dec + RADIUS_DEG)
    inside &= (dataset.field("ra") > ra - half_ra) & (dataset.field("ra") < ra + half_ra)
    return dataset.dataset(path).to_table(filter=inside)


def _look(store: ReferenceSource, at: tuple[float, float]) -> float:
    return _milliseconds(lambda: store.near(*at, RADIUS_DEG))


def _milliseconds(work: Any) -> float:
    begin = time.process_time()
    work()
    return 1e3 * (time.process_time() - begin)


def _row(name: str, value: float, unit: str) -> Row:
    return {"name": name, "value": round(float(value), 4), "unit": unit}


if __name__ == "__main__":
    sys.exit(main())

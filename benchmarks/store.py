"""How long `prepipe status` and the queue of an ingest take in a journal of many nights.

    python benchmarks/store.py [--quick] [--json]

10,000 exposures of 62 CCDs (with --quick 1,000) in 50 nights are written into a SQLite file and
into a PostgreSQL started for this: all are calibrated but those of the newest two exposures,
which have landed. `prepipe status` is timed as a command, start-up of Python included, while
another thread writes to the same journal as an ingest does; the queue and what follows a CCD as
calls. Figures are medians; those that end with ``.core`` are the time of a core that the command
took, which a machine with other work to do stretches less.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import insert, text

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from postgresql_server import Server, binaries

from prepipe.cluster.rescue import second_tries
from prepipe.model import Exposure, Kind, Night, Stage
from prepipe.store import CcdKey, Journal, tables
from prepipe.store.database import open_engine

Row = dict[str, Any]

EXPOSURES, QUICK_EXPOSURES = 10_000, 1_000
CCDS = 62
NIGHTS = 50
ROUNDS = 5
WRITE_EVERY_S = 0.05
AT_ONCE = 100
"""Exposures written in one transaction."""
FIRST_NIGHT = datetime(2025, 1, 1, tzinfo=UTC)

REDUCTION = {
    "flags": ["NO_DARK"],
    "seeing_arcsec": 1.1,
    "offset_east_arcsec": 0.4,
    "offset_north_arcsec": -0.3,
    "wcs_tries": [{"rung": "header", "relaxed": False, "solved": True}],
    "product": "/fred/dwf/products/ut250101/25/field.g.ut250101.000000_25.fits.fz",
    # the rest of it, as long as that of a real CCD
    "figures": {f"figure_{number}": number / 7 for number in range(40)},
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_EXPOSURES} exposures only")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    exposures = QUICK_EXPOSURES if options.quick else EXPOSURES
    rows: list[Row] = []
    for name, url in databases():
        rows += measure(name, url, exposures)
    if options.json:
        print(
            json.dumps({"exposures": exposures, "ccds": exposures * CCDS, "rows": rows}, indent=2)
        )
    else:
        print(f"{exposures} exposures of {CCDS} CCDs in {NIGHTS} nights")
        for each in rows:
            print(f"{each['name']:32s} {each['value']:10.3f} {each['unit']}")


def databases() -> Iterator[tuple[str, str]]:
    """The kinds of database that can be had here, each with its URL; empty for a file."""
    yield "sqlite", ""
    if (programs := binaries()) is not None:
        server = Server(programs)
        try:
            yield "postgresql", server.url
        finally:
            server.close()


def measure(name: str, url: str, exposures: int) -> list[Row]:
    """All figures of one database."""
    with tempfile.TemporaryDirectory() as directory:
        site = Path(directory) / "prepipe.toml"
        setting = f'[cluster]\njournal = "{url}"\n' if url else ""
        site.write_text(setting)
        where = url or Path(directory) / "cluster" / "journal.sqlite"
        journal = Journal(where)
        fill(where, exposures)
        try:
            return [*of_status(name, site, journal), *of_ingest(name, journal, exposures)]
        finally:
            journal.close()


def fill(where: Path | str, exposures: int) -> None:
    """Write all exposures at once, as nights of an ingest would have left them."""
    engine = open_engine(where)
    for first in range(0, exposures, AT_ONCE):
        numbers = range(first, min(first + AT_ONCE, exposures))
        told = [exposure_of(number, exposures) for number in numbers]
        with engine.begin() as connection:
            connection.execute(insert(tables.exposures), [values(each) for each in told])
            connection.execute(
                insert(tables.ccds),
                [ccd(each, number, exposures) for each in told for number in range(1, CCDS + 1)],
            )
    if engine.dialect.name == "postgresql":
        # what its own housekeeping does some time later
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))
    engine.dispose()


def exposure_of(number: int, exposures: int) -> Exposure:
    """An exposure, two minutes after the one before or in the next night."""
    night, place = divmod(number, max(1, exposures // NIGHTS))
    start = FIRST_NIGHT + timedelta(days=night, minutes=2 * place)
    return Exposure("decam", number + 1, Kind.OBJECT, "field", "g", start, 100.0, Night.of(start))


def values(exposure: Exposure) -> Row:
    """Row of an exposure."""
    return {
        "id": exposure.number,
        "camera": exposure.camera,
        "number": exposure.number,
        "kind": exposure.kind.value,
        "field": exposure.field,
        "band": exposure.band,
        "start": exposure.start.timestamp(),
        "exposure_s": exposure.exposure_s,
        "night": str(exposure.night),
    }


def ccd(exposure: Exposure, number: int, exposures: int) -> Row:
    """Row of a CCD."""
    landed = exposure.number > exposures - 2
    at = exposure.start.timestamp() + 120.0
    night = exposure.night.ut_name
    return {
        "id": exposure.number * CCDS + number,
        "exposure_id": exposure.number,
        "number": number,
        "name": f"S{number}",
        "stage": (Stage.LANDED if landed else Stage.CALIBRATED).value,
        "packet": f"/fred/dwf/landing/done/{night}/{exposure.number:08d}_{number}.packet",
        "packet_bytes": 1_000_000,
        "codec": "wavelet",
        "found_at": at,
        "landed_at": at + 60.0,
        "calibrated_at": None if landed else at + 70.0 + number,
        "grade": None if landed else "green",
        "reasons": [],
        "reduction": None if landed else REDUCTION,
        "seconds": {"landed": 0.1, "calibrated": 0.3},
        "start": exposure.start.timestamp(),
    }


def of_status(name: str, site: Path, journal: Journal) -> list[Row]:
    """`prepipe status` as one starts it, while an ingest writes."""
    views = {"status_s": (), "status_json_s": ("--json",), "status_all_s": ("--all",)}
    rows = []
    with writing(journal):
        for view, words in views.items():
            command = [sys.executable, "-m", "prepipe", "status", "--config", site, *words]

            def look(command: list[Any] = command) -> None:
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

            before = children_s()
            rows.append(row(f"{view}.{name}", timed(look), "s"))
            rows.append(row(f"{view}.{name}.core", (children_s() - before) / ROUNDS, "s"))
    return rows


def children_s() -> float:
    """Time of a core that commands have taken so far, s."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextmanager
def writing(journal: Journal) -> Iterator[None]:
    """Another thread changes a CCD twenty times a second."""
    key = next(iter(journal.rows(Stage.LANDED, limit=1))).key
    done = threading.Event()

    def work() -> None:
        while not done.wait(WRITE_EVERY_S):
            journal.wait(key, Stage.CALIBRATED, "a benchmark")

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def of_ingest(name: str, journal: Journal, exposures: int) -> list[Row]:
    """What an ingest asks again and again."""
    newest, through = CcdKey("decam", exposures, 1), CcdKey("decam", exposures // 2, 1)
    calls: dict[str, Callable[[], object]] = {
        "queue_ms": lambda: journal.rows(Stage.LANDED, limit=40),
        "idle_ms": lambda: journal.rows(Stage.FOUND, limit=1),
        "second_tries_ms": lambda: list(second_tries(journal, through)),
        "take_up_night_ms": lambda: journal.packets(Night.of(FIRST_NIGHT)),
        "advance_ms": lambda: journal.advance(newest, Stage.LANDED, 0.1),
    }
    return [row(f"{what}.{name}", 1e3 * timed(call), "ms") for what, call in calls.items()]


def timed(call: Callable[[], object]) -> float:
    """Median of the time a call takes, s."""
    taken = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def row(name: str, value: float, unit: str) -> Row:
    """One figure."""
    return {"name": name, "value": round(value, 4), "unit": unit}


if __name__ == "__main__":
    main()

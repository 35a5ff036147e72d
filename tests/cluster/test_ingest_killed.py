"""An ingest that is killed or stopped, as a process of its own."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

from cluster_packets import make_packet, times_noted, wait_until

from prepipe.cluster.ingest import STOP_S
from prepipe.model import Colour, Stage
from prepipe.store import Journal

PATIENCE_S = 60.0

PROGRAM = """
import signal, sys, threading
from pathlib import Path
sys.path.insert(0, {tests!r})
import cluster_packets
from prepipe.cluster import Ingest
from prepipe.compute import open_compute
from prepipe.config import Cluster, Site
from prepipe.store import Journal

if __name__ == "__main__":
    here = Path({here!r})
    site = Site(cluster=Cluster(landing=here / "landing", work=here / "cluster",
                products=here / "products", calibrations=here / "cals", poll_s=0.02))
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    compute = open_compute(site)
    journal = Journal(here / "journal.sqlite")
    report = Ingest(site, journal, compute, cluster_packets.{work}).run({once}, stop)
    compute.close()
    sys.exit(1 if report.failures else 0)
"""


def start_program(directory, work, once):
    script = directory / "ingest_program.py"
    tests = str(Path(__file__).parent)
    script.write_text(PROGRAM.format(tests=tests, here=str(directory), work=work, once=once))
    return subprocess.Popen([sys.executable, str(script)])


def begun_so_far(path):
    try:
        return sum(times_noted(path, "begun").values())
    except sqlite3.OperationalError:
        return 0


def test_killed_at_any_moment_and_started_again_it_calibrates_each_ccd_once(tmp_path):
    wanted = {(number, ccd) for number in range(1, 9) for ccd in range(1, 5)}
    moments = random.Random(20200306)
    landing = tmp_path / "landing"
    for number in range(1, 5):
        for ccd in range(1, 5):
            make_packet(landing, number, ccd)
    path = tmp_path / "journal.sqlite"
    kills_in_the_midst = 0
    for number in range(5, 9):
        for ccd in range(1, 5):
            make_packet(landing, number, ccd)
        before = begun_so_far(path)
        program = start_program(tmp_path, "reduce_slowly", once=False)
        wait_until(lambda before=before: begun_so_far(path) > before)
        time.sleep(moments.uniform(0.0, 0.5))
        program.send_signal(signal.SIGKILL)
        program.wait()
        kills_in_the_midst += len(times_noted(path, "done")) < len(wanted)
    assert start_program(tmp_path, "reduce_slowly", once=True).wait(PATIENCE_S) == 0
    assert kills_in_the_midst > 0
    assert times_noted(path, "done") == dict.fromkeys(wanted, 1)
    journal = Journal(path)
    rows = {(row.key.exposure, row.key.ccd): row for row in journal.rows()}
    journal.close()
    assert {row.stage for row in rows.values()} == {Stage.CALIBRATED}
    assert rows.keys() == wanted
    for number, ccd in wanted:
        product = tmp_path / "products" / f"{number}_{ccd}"
        assert product.read_text() == rows[number, ccd].checksum
    assert not [entry for entry in landing.iterdir() if entry.is_file()]
    assert not list(landing.glob("rejected/*"))


def test_a_polite_stop_ends_soon_and_leaves_the_unfinished_for_the_next_start(tmp_path):
    make_packet(tmp_path / "landing", 1, 1)
    program = start_program(tmp_path, "reduce_very_slowly", once=False)
    wait_until(lambda: list(tmp_path.glob("products/.begun.*")))
    begun = time.monotonic()
    program.terminate()
    assert program.wait(PATIENCE_S) == 0
    assert time.monotonic() - begun < STOP_S + 10.0
    journal = Journal(tmp_path / "journal.sqlite")
    (row,) = journal.rows()
    journal.close()
    assert (row.stage, row.tries) == (Stage.LANDED, 0)


def test_a_polite_stop_lets_the_ccd_under_way_finish(tmp_path):
    make_packet(tmp_path / "landing", 1, 1)
    program = start_program(tmp_path, "reduce_for_a_second", once=False)
    wait_until(lambda: list(tmp_path.glob("products/.begun.*")))
    program.terminate()
    assert program.wait(PATIENCE_S) == 0
    journal = Journal(tmp_path / "journal.sqlite")
    (row,) = journal.rows()
    journal.close()
    assert row.grade == Colour.YELLOW

"""A pool of workers in a job: it ends as its program does, or with what it keeps its notes in."""

from __future__ import annotations

import subprocess
import sys
import time

import psutil

from prepipe.compute import pool

WITH_A_KEEPER = """
import multiprocessing, time
if __name__ == "__main__":
    keeper = multiprocessing.get_context("spawn").Manager()
    time.sleep(60)
"""
PATIENCE_S = 30.0


def begun(*words):
    return subprocess.Popen([sys.executable, pool.__file__, *map(str, words)])


def keeper_of(process):
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        for child in psutil.Process(process.pid).children(recursive=True):
            if "spawn_main" in " ".join(child.cmdline()):
                return child
        time.sleep(0.05)
    raise AssertionError("no keeper came")


def test_it_ends_as_its_program_ends():
    assert begun(sys.executable, "-c", "raise SystemExit(7)").wait(PATIENCE_S) == 7


def test_it_ends_with_all_its_family_when_the_keeper_is_killed(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(WITH_A_KEEPER)
    process = begun(sys.executable, program)
    keeper = keeper_of(process)
    time.sleep(1.5)  # it has been seen by then
    family = psutil.Process(process.pid).children(recursive=True)
    keeper.kill()
    assert process.wait(PATIENCE_S) == 70
    assert psutil.wait_procs(family, PATIENCE_S)[1] == []


def test_a_term_is_handed_on_to_its_program():
    process = begun(sys.executable, "-c", "import time; time.sleep(60)")
    until = time.monotonic() + PATIENCE_S
    while not (family := psutil.Process(process.pid).children()):
        assert time.monotonic() < until
        time.sleep(0.05)
    time.sleep(0.5)
    process.terminate()
    process.wait(PATIENCE_S)
    assert psutil.wait_procs(family, PATIENCE_S)[1] == []

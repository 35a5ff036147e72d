"""A night on a real Slurm in which everything dies once; the benchmark is the night itself."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SLURM = ROOT.parent / "shared/tools/mini-slurm/mini-slurm.sh"
EXPOSURES, CCDS = 40, 16


@pytest.fixture(scope="module")
def night():
    lacks = [name for name in ("slurmctld", "slurmd", "munged") if shutil.which(name) is None]
    if lacks or not SLURM.exists() or os.geteuid() != 0:
        why = f"needs root, {SLURM} and {', '.join(lacks) or 'nothing else'}"
        assert os.environ.get("CI") != "true", why
        pytest.skip(why)
    words = [sys.executable, "benchmarks/compute.py", "--only", "night", "--json"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {row["name"]: row["value"] for row in json.loads(done.stdout)["rows"]}


pytestmark = [pytest.mark.timeout(900)]


def test_everything_that_was_to_die_was_there_to_die(night):
    assert night["night.missed"] == 0


def test_every_ccd_ends_calibrated_whatever_dies(night):
    assert night["night.asked"] == EXPOSURES * CCDS
    assert night["night.done"] == night["night.asked"]


def test_no_ccd_is_in_the_store_twice(night):
    assert night["night.twice"] == 0


def test_neither_processes_nor_jobs_are_left(night):
    assert night["night.left"] == 0

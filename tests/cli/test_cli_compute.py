"""`prepipe compute test`: what one trivial task finds where CCDs would be calibrated."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from batch_systems import wait_until

SLURM = """
[compute]
place = "slurm"
cores = 2
memory_gb = 0
walltime_min = 10
poll_s = 1.0
address = "127.0.0.1"
scratch = "/tmp"
"""


def test_on_this_machine_it_tells_how_long_it_took_and_what_is_there(run, site_file):
    site_file.write_text("cluster.workers = 1\n")
    answer = run("compute", "test", "--config", site_file)
    assert answer.exit_code == 0, answer.stderr
    assert "local: first answer after" in answer.stdout
    assert f"node {os.uname().nodename}" in answer.stdout
    assert f"{site_file.parent}/landing: will be made" in answer.stdout
    assert re.search(rf"{site_file.parent}/cluster: .* GB free", answer.stdout)


def test_a_directory_that_cannot_be_written_there_is_a_fault(run, site_file):
    site_file.write_text('[cluster]\nworkers = 1\nproducts = "/proc/products"\n')
    answer = run("compute", "test", "--config", site_file, "--json")
    assert answer.exit_code == 1
    assert "failed: /proc/products cannot be written on" in answer.stderr
    told = json.loads(answer.stdout)
    assert len(told["faults"]) == 1
    assert told["place"] == "local"


def test_a_scratch_disk_that_the_node_does_not_have_is_a_fault(run, site_file):
    site_file.write_text('cluster.workers = 1\ncompute.scratch = "$NO_SUCH_DISK"\n')
    answer = run("compute", "test", "--config", site_file)
    assert answer.exit_code == 1
    assert "$NO_SUCH_DISK is not set" in answer.stderr


def test_on_this_machine_nothing_would_be_submitted(run, site_file):
    answer = run("compute", "test", "--dry-run", "--config", site_file)
    assert answer.exit_code == 0
    assert "nothing is submitted" in answer.stdout


def test_a_batch_system_that_is_not_here_is_wrong_configuration(run, site_file, monkeypatch):
    site_file.write_text('compute.place = "slurm"\n')
    monkeypatch.setenv("PATH", "/nonexistent")
    for words in ((), ("--dry-run",)):
        answer = run("compute", "test", *words, "--config", site_file)
        assert answer.exit_code == 2
        assert "there is no sbatch here" in answer.stderr


@pytest.fixture
def on_slurm(slurm, site_file: Path, monkeypatch) -> Path:
    source = Path(__file__).resolve().parents[2] / "src"
    monkeypatch.setenv("PYTHONPATH", str(source))
    site_file.write_text(SLURM)
    slurm.empty()
    return site_file


def test_on_slurm_a_dry_run_shows_the_script_and_submits_nothing(run, on_slurm, slurm):
    before = slurm.submitted()
    answer = run("compute", "test", "--dry-run", "--config", on_slurm)
    assert answer.exit_code == 0, answer.stderr
    assert answer.stdout.startswith("#!/bin/bash")
    assert "#SBATCH --cpus-per-task=2" in answer.stdout
    assert "# submitted by: sbatch" in answer.stdout
    assert slurm.submitted() == before


def test_on_slurm_one_job_is_asked_for_looked_at_and_given_back(run, on_slurm, slurm):
    before = slurm.submitted()
    answer = run("compute", "test", "--config", on_slurm, "--json", "--patience", 100)
    assert answer.exit_code == 0, answer.stderr
    told = json.loads(answer.stdout)
    assert told["seen"]["job"] == str(slurm.submitted())
    assert told["seen"]["scratch"]["path"] == f"/tmp/prepipe-{os.getuid()}"
    assert told["warm_ms"] < 1e3 * told["first_s"]
    assert slurm.submitted() == before + 1
    assert "is pending" in answer.stderr or "is starting" in answer.stderr
    slurm.empty()
    assert list((on_slurm.parent / "cluster").glob("compute-test-*")) == []


def test_on_slurm_patience_that_is_over_is_told_with_the_state_of_the_job(run, on_slurm, slurm):
    with on_slurm.open("a") as stream:
        stream.write('options = ["#SBATCH --hold"]\n')
    answer = run("compute", "test", "--config", on_slurm, "--patience", 4)
    assert answer.exit_code == 1
    assert "no answer within 4 s; job" in answer.stderr
    held = "is pending (JobHeldUser): look at the queue, or wait longer with --patience"
    assert held in answer.stderr
    assert slurm.states() == {}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_on_slurm_a_test_that_is_ended_leaves_no_job_and_no_directory(on_slurm, slurm, number):
    with on_slurm.open("a") as stream:
        stream.write('options = ["#SBATCH --hold"]\n')
    words = [sys.executable, "-m", "prepipe", "compute", "test", "--config", str(on_slurm)]
    test = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    assert wait_until(slurm.states)
    test.send_signal(number)
    _, said = test.communicate(timeout=60)
    assert (test.returncode, slurm.states()) == (130, {})
    assert said.endswith("interrupted\n")
    assert list((on_slurm.parent / "cluster").glob("compute-test-*")) == []


def test_on_slurm_a_refusal_ends_the_test_at_once_in_the_schedulers_own_words(run, on_slurm):
    with on_slurm.open("a") as stream:
        stream.write('queue = "nosuch"\n')
    answer = run("compute", "test", "--config", on_slurm, "--patience", 500)
    assert answer.exit_code == 1
    said = "prepipe: no job is granted: sbatch: invalid partition specified: nosuch / "
    assert said in answer.stderr
    assert answer.stderr.count("no job is granted") == 1


def test_on_slurm_a_module_that_cannot_be_loaded_ends_the_job_and_is_told(run, on_slurm):
    with on_slurm.open("a") as stream:
        stream.write('modules = ["no/such"]\n')
    answer = run("compute", "test", "--config", on_slurm, "--patience", 100)
    assert answer.exit_code == 1
    assert "ended before its workers started: " in answer.stderr
    assert "prepipe: module no/such cannot be loaded" in answer.stderr


def test_on_slurm_what_the_set_up_said_on_stderr_is_shown_though_all_went_well(run, on_slurm):
    with on_slurm.open("a") as stream:
        stream.write('setup = ["echo beware of the quota >&2"]\n')
    answer = run("compute", "test", "--config", on_slurm, "--patience", 100)
    assert answer.exit_code == 0, answer.stderr
    assert "the job's shell said on stderr:\n  beware of the quota" in answer.stderr


def test_an_address_that_is_not_this_hosts_is_wrong_configuration(run, on_slurm, slurm):
    on_slurm.write_text(SLURM.replace("127.0.0.1", "203.0.113.7"))
    before = slurm.submitted()
    answer = run("compute", "test", "--config", on_slurm)
    assert answer.exit_code == 2
    assert "compute.address: 203.0.113.7 is no address of this host" in answer.stderr
    assert slurm.submitted() == before

"""Slurm, Torque and PBS Pro alike: whoever asked for jobs is told of trouble, and leaves none."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import batch_works as works
import psutil
import pytest
from batch_systems import PATIENCE_S, brokers_of, told_id, wait_until

from prepipe.compute.batch import BatchCompute
from prepipe.compute.broker import Broker
from prepipe.errors import ConfigError, PlaceLostError, TransientError

HOLD = {"slurm": "#SBATCH --hold", "torque": "#PBS -h", "pbspro": "#PBS -h"}

pytestmark = pytest.mark.usefixtures("quick_to_lose")


def test_closing_cancels_all_jobs_and_leaves_no_process(slurm, tmp_path):
    slurm.empty()
    compute = BatchCompute(slurm.settings(), tmp_path / "compute")
    under_way = compute.submit(works.tell_and_sleep, (tmp_path / "told", 60.0))
    worker = psutil.Process(told_id(tmp_path / "told"))
    (broker,) = brokers_of(psutil.Process())
    compute.close()
    assert isinstance(under_way.exception(), PlaceLostError)
    assert isinstance(compute.submit(works.double, 1).exception(), PlaceLostError)
    assert wait_until(lambda: not slurm.states())
    assert wait_until(lambda: not worker.is_running())
    assert wait_until(lambda: not broker.is_running())


def test_a_set_up_that_fails_is_told_in_its_own_words_and_brings_no_flood_of_jobs(system, tmp_path):
    before = system.submitted()
    setup = ("echo no module called photpipe >&2", "exit 3")
    compute = BatchCompute(system.settings(jobs=4, jobs_ready=4, setup=setup), tmp_path / "compute")
    try:
        assert wait_until(lambda: "no module called photpipe" in compute.tend())
        assert "ended before its workers started" in compute.tend()
        time.sleep(4.0)
        assert system.submitted() - before == 4
    finally:
        compute.close()


def test_a_refusal_is_told_in_the_schedulers_words(system, tmp_path):
    compute = BatchCompute(system.settings(queue="no.such"), tmp_path / "compute")
    try:
        assert wait_until(lambda: compute.tend() != "")
        assert "no job is granted" in compute.tend()
        assert any(word in compute.tend() for word in ("invalid partition", "Unknown queue"))
    finally:
        compute.close()


OWNER = """
import sys, time
from pathlib import Path
from prepipe.compute import scheduler
from prepipe.compute.batch import BatchCompute
from prepipe.config import Compute
import batch_works

if __name__ == "__main__":
    scheduler.HEARTBEAT_S, scheduler.LOST_AFTER_S = 1, 5
    compute = BatchCompute(Compute.model_validate_json({settings!r}), Path({directory!r}))
    compute.submit(batch_works.tell_and_sleep, (Path({told!r}), 300.0))
    time.sleep(300)
"""


def owner_of(settings, directory: Path) -> subprocess.Popen:
    """Another process, with a compute of its own."""
    script = directory / "owner.py"
    told = str(directory / "told")
    script.write_text(
        OWNER.format(
            settings=settings.model_dump_json(), directory=str(directory / "compute"), told=told
        )
    )
    path = settings.environment["PYTHONPATH"]
    return subprocess.Popen([sys.executable, str(script)], env=os.environ | {"PYTHONPATH": path})


def test_brokers_and_jobs_of_an_owner_that_is_killed_disappear_by_themselves(slurm, tmp_path):
    slurm.empty()
    owner = owner_of(slurm.settings(), tmp_path)
    try:
        worker = psutil.Process(told_id(tmp_path / "told"))
        (broker,) = brokers_of(psutil.Process(owner.pid))
    finally:
        owner.kill()
        owner.wait()
    assert wait_until(lambda: not broker.is_running(), 5.0)
    assert wait_until(lambda: not slurm.states(), 30.0)
    assert wait_until(lambda: not worker.is_running())


def test_jobs_of_an_owner_that_is_killed_are_cancelled_by_the_next_even_if_they_only_wait(
    system, tmp_path
):
    system.empty()
    owner = owner_of(system.settings(options=(HOLD[system.place],)), tmp_path)
    try:
        assert wait_until(lambda: list(system.states().values()) == ["pending"])
        assert wait_until(lambda: (tmp_path / "compute" / "jobs.json").read_text() != "[]")
    finally:
        owner.kill()
        owner.wait()
    (job,) = system.states()
    following = BatchCompute(system.settings(jobs_ready=0), tmp_path / "compute")
    try:
        assert job not in system.states()
    finally:
        following.close()


def test_two_cannot_work_in_one_directory_and_the_first_keeps_its_jobs(system, tmp_path):
    system.empty()
    hold = (HOLD[system.place],)
    first = BatchCompute(system.settings(options=hold), tmp_path / "compute")
    try:
        assert wait_until(system.states)
        with pytest.raises(ConfigError, match="in use by process"):
            BatchCompute(system.settings(), tmp_path / "compute")
        assert system.states()
    finally:
        first.close()
    assert wait_until(lambda: not system.states())


def test_an_order_that_the_broker_did_not_live_to_take_neither_hangs_nor_counts(pbspro, tmp_path):
    compute = BatchCompute(pbspro.settings(jobs_ready=0), tmp_path)
    try:
        (broker,) = brokers_of(psutil.Process())
        broker.kill()
        assert wait_until(lambda: broker.status() == psutil.STATUS_ZOMBIE)
        time.sleep(0.5)  # the way to it is closed moments after its death
        sent = threading.Thread(target=_send, args=(compute._broker,), daemon=True)
        sent.start()
        sent.join(PATIENCE_S)
        assert not sent.is_alive()
        with pytest.raises(TransientError, match="the broker of the batch jobs died"):
            compute.submit(works.double, 4)
        assert wait_until(lambda: compute.tend() == "" and compute._broker.alive)
        assert not compute.submit(works.double, 4).done()
    finally:
        compute.close()


def _send(broker: Broker) -> None:
    with suppress(Exception):
        broker.submit(b"", 0.0)

"""Slurm, Torque and PBS Pro alike: jobs are asked for, lost, and given back."""

from __future__ import annotations

import time

import batch_works as works
import pytest
from batch_systems import answer, carried_out, running_job, told_id, wait_until

from prepipe.compute.batch import BatchCompute
from prepipe.errors import PlaceLostError

JOB_ID = {"slurm": "SLURM_JOB_ID", "torque": "SLURM_JOB_ID", "pbspro": "PBS_JOBID"}


@pytest.fixture(scope="module")
def compute(system, quick_to_lose, tmp_path_factory):
    directory = tmp_path_factory.mktemp("compute")
    if system.place == "pbspro":
        system.forget_ended_jobs()  # as most sites do
    compute = BatchCompute(system.settings(jobs=2, idle_s=1.0), directory)
    yield compute
    compute.close()
    assert wait_until(lambda: not system.states()), "closing leaves jobs"


def test_orders_are_carried_out_in_a_job_of_the_batch_system(compute, system):
    assert carried_out(compute, works.double, 21) == 42
    assert carried_out(compute, works.variable, JOB_ID[system.place]) == running_job(system)


def test_orders_of_a_cancelled_job_are_lost_with_their_place_and_others_get_a_new_job(
    compute, system, tmp_path
):
    job = running_job(system)
    victim = compute.submit(works.tell_and_sleep, (tmp_path / "victim", 60.0))
    told_id(tmp_path / "victim")
    system.cancel(job)
    told = set()
    assert wait_until(lambda: told.add(compute.tend()) or victim.done())
    assert isinstance(victim.exception(), PlaceLostError)
    assert carried_out(compute, works.double, 4) == 8
    assert running_job(system) != job
    assert told - {""} == {f"job {job} is gone; another is asked for"}
    assert wait_until(lambda: compute.tend() == "")


def test_more_work_gets_more_jobs_and_those_without_work_are_given_back(compute, system, tmp_path):
    names = [tmp_path / str(number) for number in range(4)]
    futures = [compute.submit(works.tell_and_sleep, (name, 2.0)) for name in names]
    assert wait_until(lambda: len(system.states()) == 2)
    for future in futures:
        answer(compute, future).result()
    running_job(system)
    assert wait_until(lambda: len(compute.jobs()) == 1)


def test_while_the_controller_is_away_work_goes_on_and_after_its_return_jobs_come(
    compute, system, tmp_path
):
    job = running_job(system)
    under_way = compute.submit(works.tell_and_sleep, (tmp_path / "told", 2.0))
    system.lose_controller()
    try:
        assert answer(compute, under_way).result() == told_id(tmp_path / "told")
        assert wait_until(lambda: compute.tend() != "")
        assert carried_out(compute, works.double, 4) == 8
    finally:
        system.return_controller()
    assert wait_until(lambda: compute.tend() == "")
    assert running_job(system) == job
    system.cancel(job)
    assert wait_until(lambda: job not in [one.id for one in compute.jobs()])
    assert carried_out(compute, works.double, 5) == 10


def test_all_is_given_back_if_asked_and_the_next_order_gets_a_job_that_stays(compute, system):
    compute.release()
    assert wait_until(lambda: not system.states())
    assert carried_out(compute, works.double, 5) == 10
    job = running_job(system)
    time.sleep(3.0)
    assert running_job(system) == job

"""Workers in the jobs of a batch system: what comes back, and what dies with whom.

One compute goes through all of it, as through a bad night: each test leaves it able to work.
"""

from __future__ import annotations

import os
import signal
import time

import batch_works as works
import psutil
import pytest
from batch_systems import (
    answer,
    brokers_of,
    carried_out,
    running_job,
    told_id,
    wait_until,
)

from prepipe.compute import worker_traceback
from prepipe.compute.batch import BatchCompute
from prepipe.errors import FitsError, PacketError, PlaceLostError, TransientError


@pytest.fixture(scope="module")
def compute(slurm, quick_to_lose, tmp_path_factory):
    directory = tmp_path_factory.mktemp("compute")
    compute = BatchCompute(slurm.settings(), directory, time_limit_s=6.0)
    yield compute
    compute.close()
    slurm.empty()


def test_each_order_gets_its_own_outcome(compute):
    futures = [compute.submit(works.double, order) for order in range(20)]
    assert [answer(compute, future).result() for future in futures] == [2 * n for n in range(20)]


def test_work_is_done_by_as_many_lasting_processes_as_a_job_has_cores(compute, tmp_path):
    assert compute.slots == 2
    both = [compute.submit(works.tell_and_sleep, (tmp_path / n, 1.0)) for n in "ab"]
    first = {answer(compute, future).result() for future in both}
    more = [compute.submit(works.process_id, None) for _ in range(10)]
    assert len(first) == 2
    assert {answer(compute, future).result() for future in more} <= first


def test_jobs_are_shown_with_what_they_are_at(compute, slurm, tmp_path):
    future = compute.submit(works.tell_and_sleep, (tmp_path / "told", 3.0))
    assert wait_until(lambda: [job.busy for job in compute.jobs()] == [1])
    (job,) = compute.jobs()
    assert (job.id, job.state, job.workers) == (running_job(slurm), "running", 2)
    assert job.since > 1e9
    answer(compute, future)


@pytest.mark.parametrize(
    ("order", "kind", "message"),
    [
        ("fits", FitsError, "this.fits ends too early"),
        ("own", PacketError, "1 is not 2"),
        ("odd", ValueError, "odd"),
    ],
)
def test_an_error_comes_back_as_itself_with_the_workers_traceback(compute, order, kind, message):
    error = answer(compute, compute.submit(works.fail, order)).exception()
    assert isinstance(error, kind)
    assert message in str(error)
    assert "in fail" in worker_traceback(error)


def test_what_cannot_cross_is_an_error_of_that_order_alone(compute):
    back = answer(compute, compute.submit(works.give_what_cannot_cross, None)).exception()
    forth = answer(compute, compute.submit(works.double, lambda: None)).exception()
    assert not isinstance(back, TransientError)
    assert not isinstance(forth, TransientError)
    assert carried_out(compute, works.double, 4) == 8


def test_the_most_urgent_of_many_is_carried_out_first(compute, tmp_path):
    order = tmp_path / "begun"
    leave = tmp_path / "leave"
    holders = [compute.submit(works.tell_and_wait, (tmp_path / n, leave)) for n in "ab"]
    for name in "ab":
        told_id(tmp_path / name)
    others = [compute.submit(works.add_line, (order, "other"), 1.0) for _ in range(100)]
    urgent = [compute.submit(works.add_line, (order, "urgent"), 2.0) for _ in range(3)]
    time.sleep(1.0)  # until the broker has them all
    leave.touch()
    for future in (*holders, *others, *urgent):
        answer(compute, future).result()
    begun = order.read_text().split()
    # two workers write as they come: the last urgent one may be beside the first other
    assert begun[:4].count("urgent") == 3
    assert len(begun) == 103


def test_a_killed_worker_costs_its_own_order_alone_and_its_job_goes_on(compute, slurm, tmp_path):
    job = running_job(slurm)
    victim = compute.submit(works.tell_and_sleep, (tmp_path / "victim", 60.0))
    beside = compute.submit(works.tell_and_sleep, (tmp_path / "beside", 3.0))
    behind = [compute.submit(works.double, order) for order in range(4)]
    os.kill(told_id(tmp_path / "victim"), signal.SIGKILL)
    error = answer(compute, victim).exception()
    assert type(error) is TransientError
    assert "worker died" in str(error)
    assert answer(compute, beside).result() == told_id(tmp_path / "beside")
    assert [answer(compute, future).result() for future in behind] == [0, 2, 4, 6]
    assert running_job(slurm) == job


def test_a_worker_that_hangs_even_inside_a_library_is_ended_by_the_time_limit(compute, slurm):
    job = running_job(slurm)
    error = answer(compute, compute.submit(works.hang_in_a_library, None)).exception()
    assert type(error) is TransientError
    assert carried_out(compute, works.double, 4) == 8
    assert running_job(slurm) == job


def test_orders_of_a_dead_node_are_lost_with_their_place_and_others_get_another(
    compute, slurm, tmp_path
):
    node = slurm.node_of(running_job(slurm))
    victim = compute.submit(works.tell_and_sleep, (tmp_path / "victim", 60.0))
    told_id(tmp_path / "victim")
    slurm.kill_node(node)
    try:
        assert isinstance(answer(compute, victim).exception(), PlaceLostError)
    finally:
        # one that comes back says that its jobs are gone; one that does not is found out later
        slurm.start_node(node)
    assert carried_out(compute, works.double, 4) == 8


@pytest.mark.parametrize("fate", [signal.SIGKILL, signal.SIGSTOP])
def test_a_broker_that_dies_or_hangs_loses_its_orders_and_is_replaced(
    compute, slurm, tmp_path, fate
):
    futures = [compute.submit(works.tell_and_sleep, (tmp_path / n, 60.0)) for n in "abc"]
    told_id(tmp_path / "a")
    (broker,) = brokers_of(psutil.Process())
    broker.send_signal(fate)
    for future in futures:
        assert isinstance(answer(compute, future).exception(), PlaceLostError)
    assert carried_out(compute, works.double, 4) == 8
    running_job(slurm)


def test_a_job_that_takes_no_more_work_is_not_counted_on(compute, slurm):
    assert carried_out(compute, works.double, 4) == 8
    job = running_job(slurm)
    # as one is left that was given back while the controller did not listen
    executor = compute._broker._executor
    executor._hold_block(executor.job_ids_to_block[job])
    assert carried_out(compute, works.double, 4) == 8
    assert running_job(slurm) != job


def test_a_controller_that_has_forgotten_its_jobs_gets_new_ones(compute, slurm):
    assert carried_out(compute, works.double, 4) == 8
    slurm.forget_jobs()
    assert wait_until(lambda: compute.tend() == "" and len(slurm.states()) == 1)
    assert carried_out(compute, works.double, 4) == 8

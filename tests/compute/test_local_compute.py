"""Workers on this machine: orders, errors, death of a worker, death of the parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import CancelledError
from functools import partial
from pathlib import Path

import psutil
import pytest

from prepipe.compute import LocalCompute, open_compute, worker_traceback
from prepipe.config import Cluster, Site
from prepipe.errors import FitsError, PacketError, PrepipeError, TransientError

PATIENCE_S = 30.0


class OwnError(PacketError):
    """An error that cannot be rebuilt from its message."""

    def __init__(self, left: int, right: int) -> None:
        super().__init__(f"{left} is not {right}")


class ForeignError(Exception):
    """An error of some library, that cannot be rebuilt either."""

    def __init__(self, left: int, right: int) -> None:
        super().__init__(f"{left} and {right} do not fit")


def double(order: int) -> int:
    return 2 * order


def add(term: int, order: int) -> int:
    return term + order


def process_id(_order: object) -> int:
    return os.getpid()


def threads_allowed(_order: object) -> str:
    return os.environ["OMP_NUM_THREADS"] + os.environ["NUMBA_NUM_THREADS"]


def sleep_and_tell(order: tuple[Path, float]) -> int:
    path, seconds = order
    path.write_text(str(os.getpid()))
    time.sleep(seconds)
    return os.getpid()


def fail(order: str) -> None:
    if order == "fits":
        raise FitsError("this.fits ends too early")
    if order == "own":
        raise OwnError(1, 2)
    if order == "foreign":
        raise ForeignError(1, 2)
    if order == "exit":
        sys.exit(3)
    if order == "file":
        Path("/nonexistent/file").read_bytes()
    raise ValueError(order)


def tell_and_wait(order: tuple[Path, Path]) -> None:
    """Keep a worker until there is the second file."""
    told, leave = order
    told.write_text(str(os.getpid()))
    while not leave.exists():
        time.sleep(0.01)


def add_line(order: tuple[Path, str]) -> None:
    path, line = order
    with path.open("a") as stream:
        stream.write(f"{line}\n")


def give_what_cannot_cross(_order: object) -> object:
    return lambda: None


def remember_warm_up() -> None:
    os.environ["WARMED_UP"] = "yes"


def fail_to_warm_up() -> None:
    raise ValueError("no")


def warmed_up(_order: object) -> str | None:
    return os.environ.get("WARMED_UP")


def wait_until(what, patience_s: float = PATIENCE_S) -> bool:
    end = time.monotonic() + patience_s
    while not what():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def told_id(path: Path) -> int:
    assert wait_until(lambda: path.exists() and path.read_text())
    return int(path.read_text())


@pytest.fixture(scope="module")
def compute():
    workers = LocalCompute(2, remember_warm_up)
    yield workers
    workers.close()


def test_each_order_gets_its_own_outcome(compute):
    futures = [compute.submit(double, order) for order in range(20)]
    assert [future.result(PATIENCE_S) for future in futures] == [2 * n for n in range(20)]


def test_work_may_be_a_function_with_some_arguments_given(compute):
    assert compute.submit(partial(add, 40), 2).result(PATIENCE_S) == 42


def test_work_is_done_by_as_many_lasting_processes_as_there_are_slots(compute):
    futures = [compute.submit(process_id, None) for _ in range(20)]
    seen = {future.result(PATIENCE_S) for future in futures}
    assert compute.slots == 2
    assert os.getpid() not in seen
    assert seen <= set(compute.worker_ids())


def test_two_orders_run_at_the_same_time(compute, tmp_path):
    first = compute.submit(sleep_and_tell, (tmp_path / "a", 1.0))
    second = compute.submit(sleep_and_tell, (tmp_path / "b", 1.0))
    assert told_id(tmp_path / "a") != told_id(tmp_path / "b")
    assert not first.done() or not second.done()
    first.result(PATIENCE_S)
    second.result(PATIENCE_S)


def test_the_most_urgent_of_many_is_carried_out_first(tmp_path):
    begun = tmp_path / "begun"
    compute = LocalCompute(1)
    try:
        compute.submit(tell_and_wait, (tmp_path / "a", tmp_path / "leave"))
        told_id(tmp_path / "a")
        others = [compute.submit(add_line, (begun, "other"), 1.0) for _ in range(100)]
        urgent = [compute.submit(add_line, (begun, "urgent"), 2.0) for _ in range(3)]
        (tmp_path / "leave").touch()
        for future in (*others, *urgent):
            future.result(PATIENCE_S)
    finally:
        compute.close()
    assert begun.read_text().split() == ["urgent"] * 3 + ["other"] * 100


def test_workers_are_warmed_up_before_their_first_order(compute):
    assert compute.submit(warmed_up, None).result(PATIENCE_S) == "yes"


def test_numerical_libraries_are_told_to_use_one_thread(compute):
    expected = os.environ["OMP_NUM_THREADS"] + os.environ["NUMBA_NUM_THREADS"]
    assert compute.submit(threads_allowed, None).result(PATIENCE_S) == expected


@pytest.mark.parametrize(
    ("order", "kind", "message"),
    [
        ("fits", FitsError, "this.fits ends too early"),
        ("own", PacketError, "1 is not 2"),
        ("foreign", PrepipeError, "ForeignError: 1 and 2 do not fit"),
        ("exit", PrepipeError, "exit code 3"),
        ("file", FileNotFoundError, "/nonexistent/file"),
        ("odd", ValueError, "odd"),
    ],
)
def test_an_error_comes_back_with_its_class_message_and_traceback(compute, order, kind, message):
    error = compute.submit(fail, order).exception(PATIENCE_S)
    assert isinstance(error, kind)
    assert message in str(error)
    assert "in fail" in worker_traceback(error)


def test_an_outcome_that_cannot_cross_is_an_error_and_the_worker_goes_on(compute):
    before = set(compute.worker_ids())
    assert compute.submit(give_what_cannot_cross, None).exception(PATIENCE_S) is not None
    assert compute.submit(double, 4).result(PATIENCE_S) == 8
    assert set(compute.worker_ids()) == before


def test_an_order_that_cannot_cross_is_an_error_and_the_worker_goes_on(compute):
    assert compute.submit(double, lambda: None).exception(PATIENCE_S) is not None
    assert compute.submit(double, 4).result(PATIENCE_S) == 8


def test_a_killed_worker_fails_its_own_order_alone_and_is_replaced(compute, tmp_path):
    victim = compute.submit(sleep_and_tell, (tmp_path / "victim", 60.0))
    beside = compute.submit(sleep_and_tell, (tmp_path / "beside", 1.0))
    behind = [compute.submit(double, order) for order in range(4)]
    os.kill(told_id(tmp_path / "victim"), signal.SIGKILL)
    error = victim.exception(PATIENCE_S)
    assert isinstance(error, TransientError)
    assert "signal 9" in str(error)
    assert beside.result(PATIENCE_S) == told_id(tmp_path / "beside")
    assert [future.result(PATIENCE_S) for future in behind] == [0, 2, 4, 6]
    assert wait_until(lambda: len(compute.worker_ids()) == 2)


def test_a_worker_killed_while_idle_costs_no_order():
    compute = LocalCompute(1)
    try:
        pid = compute.submit(process_id, None).result(PATIENCE_S)
        os.kill(pid, signal.SIGKILL)
        assert wait_until(lambda: not compute.worker_ids())
        assert compute.submit(double, 3).result(PATIENCE_S) == 6
    finally:
        compute.close()


def test_a_failing_warm_up_leaves_the_orders_alone():
    compute = LocalCompute(1, fail_to_warm_up)
    try:
        assert compute.submit(double, 3).result(PATIENCE_S) == 6
    finally:
        compute.close()


def test_closing_stops_the_workers_at_once(tmp_path):
    compute = open_compute(Site(cluster=Cluster(workers=1)))
    running = compute.submit(sleep_and_tell, (tmp_path / "running", 60.0))
    waiting = compute.submit(double, 1)
    pid = told_id(tmp_path / "running")
    begun = time.monotonic()
    compute.close()
    assert time.monotonic() - begun < 5.0
    assert not psutil.pid_exists(pid)
    assert isinstance(running.exception(PATIENCE_S), TransientError)
    with pytest.raises(CancelledError):
        waiting.result(PATIENCE_S)
    with pytest.raises(TransientError):
        compute.submit(double, 1)


PARENT = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_local_compute import sleep_and_tell
from prepipe.compute import LocalCompute

if __name__ == "__main__":
    compute = LocalCompute(2)
    compute.submit(sleep_and_tell, (Path({told!r}), 300.0))
    time.sleep(300)
"""


def test_workers_busy_or_idle_die_with_a_parent_that_is_killed(tmp_path):
    told = tmp_path / "told"
    script = tmp_path / "parent.py"
    script.write_text(PARENT.format(tests=str(Path(__file__).parent), told=str(told)))
    parent = subprocess.Popen([sys.executable, str(script)])
    try:
        busy = told_id(told)
        family = psutil.Process(parent.pid).children(recursive=True)
        assert busy in {process.pid for process in family}
        assert len(family) >= 2
    finally:
        parent.kill()
        parent.wait()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []


def test_workers_ignore_the_interrupt_that_reaches_the_whole_terminal(compute):
    pid = compute.submit(process_id, None).result(PATIENCE_S)
    os.kill(pid, signal.SIGINT)
    time.sleep(0.1)
    assert pid in compute.worker_ids()


def test_a_worker_that_hangs_is_replaced():
    compute = LocalCompute(1, time_limit_s=5.0)
    try:
        with pytest.raises(TransientError, match="hung"):
            compute.submit(time.sleep, 100.0).result(PATIENCE_S)
        assert compute.submit(double, 4).result(PATIENCE_S) == 8
    finally:
        compute.close()

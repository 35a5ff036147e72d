"""A sample of the night's packets is held against the originals, and nothing waits for it."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

import pytest
import stand_in_codec
from telescope_end import Telescope, in_background, wait_until
from tiny_raw import write_raw

from prepipe.codec.external import ENVIRONMENT, Commands
from prepipe.model import Night, Stage
from prepipe.simulate import simulate_night
from prepipe.telescope import Happening

NIGHT = Night.parse("2020-03-05")
PATIENCE_S = 300.0
"""Checks have the lowest priority: where all cores are busy they take long."""
LOSSY = {"codec": "wavelet", "preset": "fast"}


@pytest.fixture(scope="session")
def exposures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four simulated exposures of one whole CCD."""
    out = tmp_path_factory.mktemp("night")
    simulate_night(out, 4, (28,))
    return sorted(out.glob("*.fits.fz"))


def arrive(end: Telescope, *paths: Path) -> None:
    for path in paths:
        shutil.copy(path, end.raw / path.name)


def checked(end: Telescope) -> list[int]:
    return [check.exposure for check in end.journal.checks()]


def test_the_first_packet_of_a_night_is_checked_and_what_it_cost_is_kept(
    tmp_path: Path, exposures: list[Path]
) -> None:
    end = Telescope(tmp_path)
    end.configure(pack=LOSSY)
    arrive(end, exposures[0])
    assert not end.push().failures
    (check,) = end.journal.checks(NIGHT)
    assert (check.exposure, check.ccd, check.codec) == (941421, 28, "wavelet")
    assert check.parameters["preset"] == "fast"
    assert check.ratio is not None
    assert 10 < check.ratio < 25
    assert 0.05 < check.figures["scatter"] < 0.25
    assert check.figures["found"] > 0.85
    (told,) = end.told(Happening.CHECKED)
    assert "fluxes scatter by 0." in told
    assert end.stages() == {Stage.SENT: 1}


def test_the_next_check_comes_after_so_many_exposures_whichever_push_sent_them(
    tmp_path: Path, exposures: list[Path]
) -> None:
    end = Telescope(tmp_path)
    end.configure(pack=LOSSY | {"check_every": 2})
    for path in exposures:
        arrive(end, path)
        end.push()
    assert checked(end) == [941421, 941423]


@pytest.mark.parametrize("pack", [{"codec": "rice"}, LOSSY | {"check_every": 0}])
def test_what_loses_nothing_or_is_not_to_be_checked_is_not(
    tmp_path: Path, exposures: list[Path], pack: dict[str, object]
) -> None:
    end = Telescope(tmp_path)
    end.configure(pack=pack)
    arrive(end, exposures[0])
    end.push()
    assert checked(end) == end.told(Happening.CHECKED) == []


def test_a_push_that_is_stopped_ends_its_check(tmp_path: Path, exposures: list[Path]) -> None:
    end = Telescope(tmp_path)
    end.configure(pack=LOSSY)
    arrive(end, exposures[0])
    stop = threading.Event()
    pushing = threading.Thread(target=end.push, kwargs={"once": False, "stop": stop})
    pushing.start()
    until = time.monotonic() + 60
    while end.stages() != {Stage.SENT: 1} and time.monotonic() < until:
        time.sleep(0.01)
    stop.set()
    pushing.join(30)
    assert not pushing.is_alive()
    assert end.stages() == {Stage.SENT: 1}


def test_an_exposure_that_cannot_be_checked_is_told_and_sent(tmp_path: Path) -> None:
    end = Telescope(tmp_path)
    end.configure(pack=LOSSY)
    write_raw(end.raw, 941500, (25,))
    assert not end.push().failures
    (told,) = end.told(Happening.CHECKED)
    assert "could not be checked" in told
    assert end.stages() == {Stage.SENT: 1}
    assert checked(end) == []


@pytest.fixture
def commands_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands are kept in the environment: they go when the test ends."""
    monkeypatch.setenv(ENVIRONMENT, "")


@pytest.mark.usefixtures("commands_in_use")
def test_packets_of_a_sites_own_commands_are_checked_too(
    tmp_path: Path, exposures: list[Path]
) -> None:
    end = Telescope(tmp_path)
    external = stand_in_codec.commands(tmp_path / "log")
    Commands(**external).use()
    end.configure(pack={"codec": "external", "external": external})
    arrive(end, exposures[0])
    assert not end.push().failures
    (check,) = end.journal.checks(NIGHT)
    assert check.codec == "external"
    # steps of 4 ADU leave an error of 4 / sqrt(12), a fifth to a tenth of the noise
    assert 0.05 < check.figures["rms"] < 0.5
    assert check.figures["found"] > 0.8


@pytest.mark.usefixtures("commands_in_use")
def test_a_check_that_found_the_disk_full_is_tried_again_with_the_next_exposure(
    tmp_path: Path, exposures: list[Path]
) -> None:
    end = Telescope(tmp_path)
    # the first call packs for the line, the second is the check's
    external = stand_in_codec.commands(tmp_path / "log", full_at=(2,))
    Commands(**external).use()
    end.configure(pack={"codec": "external", "external": external})
    stop, pushing = in_background(end)
    try:
        arrive(end, exposures[0])
        wait_until(lambda: len(end.told(Happening.CHECKED)) == 1, seconds=PATIENCE_S)
        arrive(end, exposures[1])
        wait_until(lambda: bool(checked(end)), seconds=PATIENCE_S)
    finally:
        stop.set()
        pushing.join(PATIENCE_S)
    first, second = end.told(Happening.CHECKED)
    assert "could not be checked" in first
    assert "No space left on device" in first
    assert "fluxes scatter by" in second
    assert checked(end) == [941422]
    assert end.stages() == {Stage.SENT: 2}


def test_checks_that_go_on_failing_become_rare_down_to_the_usual(tmp_path: Path) -> None:
    end = Telescope(tmp_path)
    end.configure(pack=LOSSY | {"check_every": 3})
    tried = [941500, 941501, 941503, 941506]
    stop, pushing = in_background(end)
    try:
        for number in range(941500, 941507):
            # so few pixels tell nothing, and the check fails
            write_raw(end.raw, number, (25,))
            wait_until(lambda: end.stages() == {Stage.SENT: number - 941499}, seconds=PATIENCE_S)  # noqa: B023
            due = sum(number >= one for one in tried)
            wait_until(lambda: len(end.told(Happening.CHECKED)) == due, seconds=PATIENCE_S)  # noqa: B023
    finally:
        stop.set()
        pushing.join(PATIENCE_S)
    told = end.told(Happening.CHECKED)
    assert [int(text.split()[1]) for text in told] == tried

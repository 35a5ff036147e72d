"""A sample of the night's packets is held against the originals, and nothing waits for it."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

import pytest
from telescope_end import Telescope
from tiny_raw import write_raw

from prepipe.model import Night, Stage
from prepipe.simulate import simulate_night
from prepipe.telescope import Happening

NIGHT = Night.parse("2020-03-05")
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

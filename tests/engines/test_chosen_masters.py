"""What a worker makes of the masters that its order names."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from astropy.io import fits
from plain_frames import NIGHT, flat, make, plain_camera, zero
from simulated_night import Night as SimulatedNight
from simulated_night import order_of

from prepipe.cameras import Camera
from prepipe.config import Calibration
from prepipe.engines.base import ChosenMasters
from prepipe.engines.builtin import reduce as builtin
from prepipe.engines.builtin.steps import Masters
from prepipe.engines.detector.library import MasterLibrary
from prepipe.engines.raw import RawCcd, read_ccd


@pytest.fixture(scope="module")
def camera(tmp_path_factory: pytest.TempPathFactory) -> Camera:
    return plain_camera(tmp_path_factory.mktemp("camera"))


@pytest.fixture(scope="module")
def biases(tmp_path_factory: pytest.TempPathFactory, camera: Camera) -> dict[int, Path]:
    """A bias of the night, and one a week later and one nine days later."""
    folder = tmp_path_factory.mktemp("biases")
    made = {}
    for days in (0, 7, 9):
        night = NIGHT + timedelta(days=days)
        sources = [zero(folder, 10 * days + k, night=night) for k in range(2)]
        made[days] = make(sources, folder / "out", camera).path
    return made


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory, camera: Camera) -> RawCcd:
    return read_ccd(flat(tmp_path_factory.mktemp("raw"), 50), 0, camera)


def taken(raw: RawCcd, camera: Camera, chosen: ChosenMasters | Path | None, **how: int) -> Masters:
    layout = camera.layout(raw.header, raw.pixels)
    return builtin._masters(raw, layout, Calibration(**how), chosen)


def test_the_first_that_can_be_read_is_taken(
    raw: RawCcd, camera: Camera, biases: dict[int, Path], tmp_path: Path
) -> None:
    cut = tmp_path / biases[0].name
    cut.write_bytes(biases[0].read_bytes()[:9000])
    gone = tmp_path / "gone" / biases[0].name
    masters = taken(raw, camera, ChosenMasters((gone, cut, biases[7], biases[0])))
    assert (masters.bias_name, masters.bias_nights) == (biases[7].name, 7)
    assert masters.flags == ("NO_FLAT",)


def test_without_any_the_ccd_goes_on_and_says_so(raw: RawCcd, camera: Camera) -> None:
    for nothing in (None, ChosenMasters()):
        masters = taken(raw, camera, nothing)
        assert masters == Masters(flags=("NO_BIAS", "NO_FLAT"))


@pytest.mark.parametrize(
    ("days", "limit", "old"), [(0, 0, False), (7, 7, False), (7, 6, True), (9, 7, True)]
)
def test_a_master_from_further_away_than_the_limit_is_flagged(
    raw: RawCcd, camera: Camera, biases: dict[int, Path], days: int, limit: int, old: bool
) -> None:
    masters = taken(raw, camera, ChosenMasters((biases[days],)), old_days=limit)
    assert ("OLD_BIAS" in masters.flags) is old


def test_a_directory_stands_for_the_nearest_by_their_names_and_no_database_is_opened(
    raw: RawCcd, camera: Camera, biases: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a worker opened a database")

    monkeypatch.setattr("sqlite3.connect", refuse)
    root = biases[0].parents[2]
    assert (root / "masters.db").is_file()
    assert taken(raw, camera, root).bias_name == biases[0].name


def test_an_engine_at_work_knows_no_database() -> None:
    import subprocess
    import sys

    code = "import prepipe.engines.builtin.reduce, sys; sys.exit('sqlalchemy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_product_tells_which_masters_it_had_and_how_far_away_they_were(
    night: SimulatedNight, tmp_path: Path
) -> None:
    outcome = night.outcomes[28]
    library = MasterLibrary(night.masters)
    chosen = library.choose(outcome.exposure, 28, Calibration())
    header = fits.getheader(outcome.reduction.product, "IMAGE")
    assert header["BIASFILE"] == chosen.bias[0].name
    assert header["FLATFILE"] == chosen.flat[0].name
    assert (header["BIASAGE"], header["FLATAGE"]) == (0, 0)
    assert (outcome.reduction.bias_nights, outcome.reduction.flat_nights) == (0, 0)
    order = order_of(night.root, night.raw, 1, products=tmp_path, calibrations=chosen)
    assert replace(order, calibrations=None).calibrations is None
    again = builtin.carry_out(order).reduction
    assert again.flags == outcome.reduction.flags

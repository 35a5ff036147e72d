"""Masters made from raw frames of which some are bad, and chosen among masters of many nights."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from plain_frames import (
    LAMP,
    NIGHT,
    READ_NOISE,
    SATURATION,
    SHAPE,
    flat,
    make,
    plain_camera,
    response,
    write,
    zero,
)

from prepipe.cameras import Camera
from prepipe.config import Calibration
from prepipe.engines.builtin import reduce as builtin
from prepipe.engines.detector.library import MasterLibrary
from prepipe.engines.detector.masters import MadeMaster
from prepipe.engines.products import read_master
from prepipe.engines.raw import read_ccd
from prepipe.errors import ConfigError, InputError
from prepipe.model import Kind, Night


@pytest.fixture(scope="module")
def camera(tmp_path_factory: pytest.TempPathFactory) -> Camera:
    return plain_camera(tmp_path_factory.mktemp("camera"))


def flat_error(made: MadeMaster) -> float:
    image = read_master(made.path)[0]
    return float(np.std(image / response() - 1))


def tilted() -> np.ndarray:
    return LAMP * response() * np.linspace(0.5, 1.5, SHAPE[1])


def saturated() -> np.ndarray:
    light = LAMP * response()
    light[:5] = 3 * SATURATION
    return light


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (np.zeros(SHAPE), "its light is"),
        (500 * response(), "its light is"),
        (np.full(SHAPE, 3 * SATURATION), "100 % of its pixels are saturated"),
        (saturated(), "4.17 % of its pixels are saturated"),
        (tilted(), "as much as usual"),
    ],
)
@pytest.mark.parametrize("good", [2, 4])
def test_one_bad_flat_is_left_out_and_leaves_no_trace(
    tmp_path: Path, camera: Camera, good: int, bad: np.ndarray, reason: str
) -> None:
    spoilt = write(tmp_path, 1, bad)
    sources = [
        flat(tmp_path, 2 + k, lamp) for k, lamp in enumerate((20e3, 24e3, 16e3, 20e3)[:good])
    ]
    made = make([spoilt, *sources], tmp_path / "out", camera)
    assert made.used == good
    (told,) = made.left_out
    assert spoilt.name in told and reason in told
    # Shot and read noise, over the frames; 12000 pixels know it to 0.7 %.
    expected = np.sqrt(LAMP + READ_NOISE**2) / LAMP / np.sqrt(good)
    assert flat_error(made) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [({"level": 40.0}, "level"), ({"noise": 25.0}, "rms"), ({"noise": 0.0}, "rms")],
)
def test_one_bad_zero_is_left_out(
    tmp_path: Path, camera: Camera, bad: dict[str, float], reason: str
) -> None:
    sources = [zero(tmp_path, 1 + k) for k in range(4)]
    spoilt = zero(tmp_path, 9, **bad)
    made = make([*sources, spoilt], tmp_path / "out", camera)
    assert made.used == 4
    (told,) = made.left_out
    assert spoilt.name in told and f"its {reason} is" in told


def test_frames_that_agree_are_all_used(tmp_path: Path, camera: Camera) -> None:
    zeros = make([zero(tmp_path, 1 + k) for k in range(5)], tmp_path / "out", camera)
    # Lamps as different as in one real series, and shot noise with them.
    lamps = (5e3, 10e3, 20e3, 30e3, 40e3)
    flats = [flat(tmp_path, 10 + k, lamp) for k, lamp in enumerate(lamps)]
    made = make(flats, tmp_path / "out", camera)
    assert (zeros.used, made.used) == (5, 5)
    assert zeros.left_out == made.left_out == ()


def test_flats_without_any_light_are_refused_with_the_reason(
    tmp_path: Path, camera: Camera
) -> None:
    sources = [flat(tmp_path, k, 0.0) for k in range(3)]
    with pytest.raises(InputError, match=r"no usable frame.*its light is"):
        make(sources, tmp_path / "out", camera)


@pytest.mark.parametrize("number", [1, 9])
def test_a_cropped_frame_is_left_out_wherever_it_stands(
    tmp_path: Path, camera: Camera, number: int
) -> None:
    cropped = write(tmp_path, number, LAMP * response()[:60])
    made = make([cropped, *(flat(tmp_path, 2 + k) for k in range(4))], tmp_path / "out", camera)
    assert made.used == 4
    assert read_master(made.path)[0].shape == SHAPE
    (told,) = made.left_out
    assert cropped.name in told and "100 x 60 pixels" in told


def test_a_flat_without_a_band_is_found_again(tmp_path: Path, camera: Camera) -> None:
    made = make([flat(tmp_path, k, band="") for k in range(3)], tmp_path / "out", camera)
    library = MasterLibrary(tmp_path / "out")
    found = library.good(Kind.DOME_FLAT, 3, "", Night(NIGHT), 0)
    assert [master.path for master in found] == [made.path]
    assert not list(library.good(Kind.ZERO, 3, "", Night(NIGHT), 0))


def biases(folder: Path, camera: Camera, after_days: tuple[int, ...]) -> list[Path]:
    paths = []
    for days in after_days:
        night = NIGHT + timedelta(days=days)
        sources = [zero(folder, 100 + 3 * days + k, night=night) for k in range(2)]
        paths.append(make(sources, folder / "out", camera).path)
    return paths


def test_masters_come_nearest_first_and_the_earlier_of_two_as_near(
    tmp_path: Path, camera: Camera
) -> None:
    before, after, far, _too_far = biases(tmp_path, camera, (-1, 1, 3, 5))
    found = MasterLibrary(tmp_path / "out").good(Kind.ZERO, 3, "r", Night(NIGHT), 3)
    assert [master.path for master in found] == [before, after, far]


@pytest.mark.parametrize("fault", ["cut", "misfit", "scrambled"])
def test_a_bad_master_does_not_hide_the_good_one_two_nights_away(
    tmp_path: Path, camera: Camera, fault: str
) -> None:
    near, good = biases(tmp_path, camera, (0, 2))
    content = near.read_bytes()
    if fault == "cut":
        near.write_bytes(content[:3000])
    elif fault == "scrambled":
        near.write_bytes(content[:5760] + b"\xff" * (len(content) - 5760))
    else:
        other = tmp_path / "other"
        crops = [write(other, 100 + k, np.zeros((60, 100)), kind="zero") for k in range(2)]
        assert make(crops, tmp_path / "out", camera).path == near
    raw = read_ccd(flat(tmp_path, 50), 0, camera)
    layout = camera.layout(raw.header, raw.pixels)
    masters = builtin._masters(raw, layout, Calibration(), tmp_path / "out")
    assert masters.bias_name == good.name
    assert masters.flags == ("NO_FLAT",)


def test_a_flat_takes_the_bias_of_its_own_night(tmp_path: Path, camera: Camera) -> None:
    _, same, _ = biases(tmp_path, camera, (-1, 0, 1))
    made = make([flat(tmp_path, k) for k in range(2)], tmp_path / "out", camera)
    assert fits.getheader(made.path, 1)["BIASFILE"] == same.name


def test_a_new_master_tells_how_far_it_is_from_that_of_the_night_before(
    tmp_path: Path, camera: Camera
) -> None:
    first, _same_night_later = biases(tmp_path, camera, (-1, 1))
    sources = [zero(tmp_path, 10 + k, level=8.0) for k in range(2)]
    made = make(sources, tmp_path / "out", camera)
    assert made.previous == first.name
    assert made.changed is not None
    # Two means of two frames each differ by one frame's noise; its median is known to 1.25 / 110
    # of that. Poisson noise of 8 electrons adds to half of the frames.
    assert made.changed.rms == pytest.approx(np.sqrt(READ_NOISE**2 + 4), rel=0.06)
    assert made.changed.shift == pytest.approx(8.0, abs=5 * 1.25 * READ_NOISE / 110)
    assert made.changed.deviating < 1e-3


def test_the_first_master_has_nothing_to_be_compared_with(tmp_path: Path, camera: Camera) -> None:
    made = make([zero(tmp_path, k) for k in range(2)], tmp_path / "out", camera)
    assert (made.previous, made.changed) == ("", None)


def bent(light: np.ndarray) -> np.ndarray:
    """What a detector counts that loses 4 % of 20000."""
    return light * (1 - 2e-6 * light)


def test_a_flat_is_made_linear_as_the_images_are(tmp_path: Path, camera: Camera) -> None:
    table = tmp_path / "linear.csv"
    light = np.linspace(0.0, 30000.0, 301)
    rows = [f"3,A,{adu},{true}" for adu, true in zip(bent(light), light, strict=True)]
    table.write_text("\n".join(["ccd,amplifier,adu,linear_adu", *rows]))
    sources = [write(tmp_path, 1 + k, bent(LAMP * response())) for k in range(4)]
    made = make(sources, tmp_path / "out", camera, Calibration(linearity=table))
    as_counted = make(sources, tmp_path / "other", camera)
    edge, middle = slice(0, 5), slice(55, 65)

    def vignetting(of: MadeMaster) -> float:
        found = read_master(of.path)[0] / response()
        return float(found[edge].mean() / found[middle].mean())

    # A pixel's noise is 0.4 %, that of the means of 500 and 1000 of them 0.02 %.
    assert vignetting(made) == pytest.approx(1.0, abs=0.001)
    # The middle is 20 % brighter than the edge, and loses 0.8 % more.
    assert vignetting(as_counted) == pytest.approx(1.008, abs=0.002)


def test_a_wrong_table_of_the_detector_is_told_rather_than_each_frame_left_out(
    tmp_path: Path, camera: Camera
) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.csv"):
        make([flat(tmp_path, 1)], tmp_path / "out", camera, Calibration(linearity="nowhere.csv"))

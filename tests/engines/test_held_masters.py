"""A new master is compared with the last good one, and held where it differs too much."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from plain_frames import LAMP, NIGHT, READ_NOISE, SHAPE, flat, make, plain_camera, write, zero
from plain_frames import response as plain_response

from prepipe.cameras import Camera
from prepipe.config import BiasChange, Calibration
from prepipe.engines.detector.library import MasterLibrary
from prepipe.engines.detector.masters import MadeMaster
from prepipe.engines.products import read_master
from prepipe.errors import InputError
from prepipe.model import Kind, Mark, Night

NEXT = NIGHT + timedelta(days=1)


@pytest.fixture(scope="module")
def camera(tmp_path_factory: pytest.TempPathFactory) -> Camera:
    return plain_camera(tmp_path_factory.mktemp("camera"))


@pytest.fixture
def out(tmp_path: Path, camera: Camera) -> Path:
    """A library with good masters of the first night."""
    make([flat(tmp_path, 1 + k) for k in range(4)], tmp_path / "out", camera)
    make([zero(tmp_path, 11 + k) for k in range(4)], tmp_path / "out", camera)
    return tmp_path / "out"


def next_flat(folder: Path, out: Path, camera: Camera, light: np.ndarray) -> MadeMaster:
    """The flat of the next night, of four frames of `light` electrons."""
    sources = [write(folder, 21 + k, light, night=NEXT) for k in range(4)]
    return make(sources, out, camera)


def chosen(out: Path, kind: Kind, days: int = 30) -> list[Path]:
    return [m.path for m in MasterLibrary(out).good(kind, 3, "r", Night(NEXT), days)]


def left_third() -> np.ndarray:
    return np.arange(SHAPE[1]) < SHAPE[1] // 3


WRONG = {
    # A lamp that is off leaves what leaks into the dome: no vignetting of the pupil.
    "the lamp was off": np.full(SHAPE, 2000.0) * np.linspace(0.9, 1.1, SHAPE[1]),
    # Another filter has its own response: here the pixels differ by 1 %.
    "another filter": LAMP * plain_response() * np.random.default_rng(7).normal(1, 0.01, SHAPE),
    "contaminated by light across a third": LAMP * plain_response() * (1 + 0.05 * left_third()),
    "contaminated by a streak": LAMP * plain_response() + 2000.0 * (np.arange(SHAPE[1]) == 50),
}


@pytest.mark.parametrize("light", WRONG.values(), ids=WRONG)
def test_a_wrong_flat_is_written_but_held(
    tmp_path: Path, camera: Camera, out: Path, light: np.ndarray
) -> None:
    before = chosen(out, Kind.DOME_FLAT)
    made = next_flat(tmp_path, out, camera, light)
    assert made.mark is Mark.HELD
    assert made.path.is_file()
    assert "limit" in made.why and before[0].name in made.why
    assert chosen(out, Kind.DOME_FLAT) == before


def test_a_flat_of_nothing_but_darkness_is_refused(
    tmp_path: Path, camera: Camera, out: Path
) -> None:
    with pytest.raises(InputError, match="its light is"):
        next_flat(tmp_path, out, camera, np.zeros(SHAPE))


@pytest.mark.parametrize("frames", [1, 2, 3, 8])
@pytest.mark.parametrize("seed", [100, 200, 300])
def test_masters_that_differ_by_their_noise_alone_are_all_accepted(
    tmp_path: Path, camera: Camera, frames: int, seed: int
) -> None:
    out = tmp_path / "out"
    made = []
    for day in range(2):
        night = NIGHT + timedelta(days=day)
        first = seed + 20 * day
        made += [
            make([zero(tmp_path, first + k, night=night) for k in range(frames)], out, camera),
            make([flat(tmp_path, first + k, night=night) for k in range(frames)], out, camera),
        ]
    assert [(m.mark, m.why) for m in made] == [(Mark.GOOD, "")] * 4
    for new in made[2:]:
        assert new.changed is not None
        # 12000 pixels know the rms to 1.17 / sqrt(n) = 1.1 %, and the noise about as well.
        assert new.changed.rms == pytest.approx(new.changed.noise, rel=0.06)


@pytest.mark.parametrize(("shift", "mark"), [(0.5, Mark.GOOD), (2.0, Mark.HELD)])
def test_a_bias_may_shift_by_one_unit(
    tmp_path: Path, camera: Camera, out: Path, shift: float, mark: Mark
) -> None:
    sources = [zero(tmp_path, 31 + k, level=shift, night=NEXT) for k in range(4)]
    made = make(sources, out, camera)
    assert made.mark is mark
    if mark is Mark.HELD:
        assert "shifted by" in made.why and "ADU (limit 1 ADU)" in made.why
        assert made.path not in chosen(out, Kind.ZERO)


def test_the_limits_are_those_of_the_settings(tmp_path: Path, camera: Camera, out: Path) -> None:
    settings = Calibration(bias_change=BiasChange(shift_adu=5.0))
    sources = [zero(tmp_path, 31 + k, level=2.0, night=NEXT) for k in range(4)]
    assert make(sources, out, camera, settings).mark is Mark.GOOD


def test_a_held_master_is_compared_with_by_none(tmp_path: Path, camera: Camera, out: Path) -> None:
    (good,) = chosen(out, Kind.ZERO)
    make([zero(tmp_path, 31 + k, level=9.0, night=NEXT) for k in range(4)], out, camera)
    later = NIGHT + timedelta(days=2)
    made = make([zero(tmp_path, 41 + k, night=later) for k in range(4)], out, camera)
    assert (made.mark, made.previous) == (Mark.GOOD, good.name)


def test_a_night_calibrated_late_is_compared_with_those_after_it(
    tmp_path: Path, camera: Camera, out: Path
) -> None:
    (good,) = chosen(out, Kind.ZERO)
    before = NIGHT - timedelta(days=1)
    made = make([zero(tmp_path, 41 + k, 9.0, night=before) for k in range(4)], out, camera)
    assert (made.mark, made.previous) == (Mark.HELD, good.name)


def test_a_flat_takes_no_bias_that_is_held(tmp_path: Path, camera: Camera, out: Path) -> None:
    (good,) = chosen(out, Kind.ZERO)
    make([zero(tmp_path, 31 + k, level=9.0, night=NEXT) for k in range(4)], out, camera)
    made = make([flat(tmp_path, 51 + k, night=NEXT) for k in range(4)], out, camera)
    assert fits.getheader(made.path, 1)["BIASFILE"] == good.name


def test_what_was_held_and_accepted_stays_so_when_made_again(
    tmp_path: Path, camera: Camera, out: Path
) -> None:
    sources = [zero(tmp_path, 31 + k, level=9.0, night=NEXT) for k in range(4)]
    held = make(sources, out, camera)
    library = MasterLibrary(out)
    row = library.master(held.path).row
    library.table.change([row], mark=Mark.GOOD, why="new controller", by_hand=True)
    again = make(sources, out, camera)
    assert (again.mark, again.why) == (Mark.GOOD, "new controller")
    assert again.path in chosen(out, Kind.ZERO)


def test_other_frames_do_not_inherit_what_a_person_said_of_the_last_ones(
    tmp_path: Path, camera: Camera, out: Path
) -> None:
    sources = [zero(tmp_path, 31 + k, night=NEXT) for k in range(4)]
    first = make(sources, out, camera)
    library = MasterLibrary(out)
    library.table.change([library.master(first.path).row], mark=Mark.BAD, why="haze", by_hand=True)
    # The same frames make the same master: it stays bad. Fewer make another one, to be looked at.
    assert make(sources, out, camera).mark is Mark.BAD
    fewer = make(sources[:3], out, camera)
    assert (fewer.path, fewer.mark) == (first.path, Mark.HELD)
    assert "was marked bad: haze" in fewer.why


def test_a_held_master_stays_held_when_its_row_is_lost(
    tmp_path: Path, camera: Camera, out: Path
) -> None:
    sources = [zero(tmp_path, 31 + k, level=9.0, night=NEXT) for k in range(4)]
    held = make(sources, out, camera)
    MasterLibrary(out).table.path.unlink()
    assert held.path not in chosen(out, Kind.ZERO)
    assert MasterLibrary(out).master(held.path).row.mark is Mark.HELD


@pytest.mark.parametrize("frames", [2, 3, 5, 9])
def test_a_master_tells_its_true_noise_however_few_its_frames(
    tmp_path: Path, camera: Camera, frames: int
) -> None:
    made = make([zero(tmp_path, 1 + k) for k in range(frames)], tmp_path / "out", camera)
    # Read noise and rounding. The median of 12000 scatters is known to 1.3 % at worst, of two.
    expected = np.hypot(READ_NOISE, 12**-0.5) / np.sqrt(frames)
    assert made.noise == pytest.approx(expected, rel=0.05)
    assert read_master(made.path)[0].std() == pytest.approx(expected, rel=0.05)


def test_frames_that_wait_on_disk_make_the_same_master(
    tmp_path: Path, camera: Camera, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = [flat(tmp_path, 1 + k) for k in range(5)]
    in_memory = make(sources, tmp_path / "one", camera)
    monkeypatch.setattr("prepipe.engines.detector.masters.FRAMES_IN_MEMORY", 1)
    on_disk = make(sources, tmp_path / "other", camera)
    assert on_disk.path.read_bytes() == in_memory.path.read_bytes()

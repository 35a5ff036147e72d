"""A night of exposures: reproducible, growing on disk if asked, with its truth beside it."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from astropy.io import fits
from simulated_ccds import SOUTH

from prepipe.errors import ConfigError, InputError, StorageError
from prepipe.model import Kind
from prepipe.simulate import (
    Settings,
    read_truth,
    simulate_exposure,
    simulate_night,
    truth_path,
)
from prepipe.simulate.focal_plane import chosen_detectors
from prepipe.simulate.observation import plan


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    first, again = (
        simulate_night(tmp_path / name, 1, ccds=(SOUTH,), seed=5)[0] for name in ("a", "b")
    )
    assert first.read_bytes() == again.read_bytes()
    assert truth_path(first).read_bytes() == truth_path(again).read_bytes()


def test_another_seed_gives_another_sky_but_the_same_camera(tmp_path):
    one, two = (
        read_truth(simulate_night(tmp_path / str(seed), 1, ccds=(SOUTH,), seed=seed)[0])
        for seed in (5, 6)
    )
    assert one.stars["ra"][0] != two.stars["ra"][0]
    assert one.ccd(SOUTH)["bias_a"] == pytest.approx(two.ccd(SOUTH)["bias_a"], abs=5.0)
    assert one.ccd(SOUTH)["response"] == two.ccd(SOUTH)["response"]


def test_a_night_numbers_its_exposures_and_tells_its_progress(tmp_path):
    told = []
    paths = simulate_night(
        tmp_path,
        2,
        ccds=(SOUTH,),
        kind=Kind.ZERO,
        progress=lambda done, total: told.append((done, total)),
    )
    assert [p.name for p in paths] == ["DECam_00941201.fits.fz", "DECam_00941202.fits.fz"]
    assert told == [(1, 2), (2, 2)]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        name for p in paths for name in (p.name, truth_path(p).name)
    )


def test_zeros_flats_and_objects_of_a_night_do_not_collide():
    plans = [plan(Settings(kind=kind), 0) for kind in (Kind.ZERO, Kind.DOME_FLAT, Kind.OBJECT)]
    assert len({p.number for p in plans}) == 3
    assert len({p.night for p in plans}) == 1


def test_headers_of_zeros_and_flats_say_so(zeros, flats):
    zero, flat = (fits.getheader(exposed[0].path) for exposed in (zeros, flats))
    assert (zero["OBSTYPE"], zero["EXPTIME"], zero["CAMSHUT"]) == ("zero", 0.0, "Closed")
    assert (flat["OBSTYPE"], flat["FILTER"][0]) == ("dome flat", "g")
    assert len(zeros[0].truth.stars) == len(flats[0].truth.stars) == 0


def test_with_a_cadence_the_file_grows_under_its_final_name(tmp_path):
    settings = Settings(ccds=(SOUTH,), kind=Kind.ZERO)
    path = tmp_path / "DECam_00941201.fits.fz"
    writer = threading.Thread(target=simulate_exposure, args=(settings, 0, tmp_path, 1.2))
    sizes = []
    writer.start()
    while writer.is_alive():
        sizes.append(path.stat().st_size if path.exists() else 0)
        time.sleep(0.05)
    writer.join()
    partial = {size for size in sizes if 2880 < size < path.stat().st_size}
    assert len(partial) >= 3
    at_once = simulate_exposure(settings, 0, tmp_path / "at once")
    assert path.read_bytes() == at_once.read_bytes()


def test_without_a_cadence_a_file_appears_whole(tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("prepipe.simulate.telescope.compressed_image", fail)
    with pytest.raises(StorageError, match=r"DECam_00941201\.fits\.fz"):
        simulate_exposure(Settings(ccds=(SOUTH,), kind=Kind.ZERO), 0, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_errors_stay_within_what_was_asked_and_differ_between_exposures():
    settings = Settings(pointing_error_arcsec=30.0, rotation_deg=0.02)
    plans = [plan(settings, index) for index in range(40)]
    offsets = [(p.true_dec - p.dec) * 3600 for p in plans]
    assert max(map(abs, offsets)) <= 30.0
    assert len(set(offsets)) == 40
    assert max(abs(p.rotation_deg) for p in plans) <= 0.02
    exact = plan(Settings(pointing_error_arcsec=0.0, rotation_deg=0.0), 0)
    assert (exact.true_ra, exact.true_dec, exact.rotation_deg) == (exact.ra, exact.dec, 0.0)


def test_a_count_of_ccds_means_those_nearest_to_the_centre():
    assert {d.number for d in chosen_detectors(2)} == {28, 35}
    assert len(chosen_detectors(None)) == 62
    assert {d.number for d in chosen_detectors(4)} < {d.number for d in chosen_detectors(10)}


def test_s30_was_dead_until_the_end_of_2016():
    s30 = next(d for d in chosen_detectors((2,)))
    assert s30.is_dead(datetime(2016, 12, 28, tzinfo=UTC))
    assert not s30.is_dead(datetime(2016, 12, 30, tzinfo=UTC))


@pytest.mark.parametrize(
    "wrong",
    [
        {"band": "q"},
        {"seed": -1},
        {"seeing_arcsec": 0.0},
        {"dec": 91.0},
        {"exposure_s": -1.0},
        {"first_exposure": 0},
        {"kind": Kind.OTHER},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ConfigError, match="simulate: "):
        Settings(**wrong)


@pytest.mark.parametrize("ccds", [0, 63, (), (63,), (1, 99)])
def test_ccds_that_do_not_exist_are_refused(tmp_path, ccds):
    with pytest.raises(ConfigError, match="give 1 to 62"):
        simulate_night(tmp_path, 1, ccds=ccds)


@pytest.mark.parametrize("ra", [0.0, 90.0, 200.0, 300.0])
def test_without_a_start_a_night_is_found_in_which_the_field_is_up(ra):
    plans = [plan(Settings(ra=ra, dec=-30.0, kind=kind), 0) for kind in (Kind.ZERO, Kind.OBJECT)]
    assert plans[1].zenith_distance_deg < 60.0
    assert plans[0].night == plans[1].night


def test_a_field_below_the_horizon_is_refused():
    with pytest.raises(ConfigError, match="from the zenith"):
        plan(Settings(ra=330.0, dec=70.0), 0)


def test_a_missing_truth_is_named(tmp_path: Path):
    with pytest.raises(InputError, match="no truth"):
        read_truth(tmp_path / "DECam_00000001.fits.fz")

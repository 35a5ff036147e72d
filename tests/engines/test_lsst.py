"""The LSST pipelines reduce a CCD as an engine; stand-ins follow their commands to the letter."""

from __future__ import annotations

import multiprocessing
import sqlite3
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from stack_orders import HSC_RAW, calls, hsc_packet, setup_file

from prepipe.cameras import load_camera
from prepipe.codec.pack import pack_ccd
from prepipe.codec.packet import write_packet
from prepipe.config import Calibration, Engines, Lsst, Site
from prepipe.engines.base import Order
from prepipe.engines.choice import open_engine
from prepipe.engines.raw import list_ccds, read_exposure
from prepipe.engines.stack.lsst import carry_out, link_repository
from prepipe.errors import ConfigError, EngineError
from prepipe.model import Colour, PointingHint

DECAM_RAW = Path("decam_raw/cutout_c4d_200306_000415_ori.fits.fz")
CALEXP = Path("decam_raw/cutout_calexp-0941420_23.fits")
INPUTS = ("DECam/raw/all", "DECam/calib")


def decam_packet(directory: Path, raw: Path, number: int = 23) -> Path:
    camera = load_camera("decam")
    hdu, ccd = next((hdu, ccd) for hdu, ccd in list_ccds(raw, camera) if ccd.number == number)
    packed = pack_ccd(raw, hdu, read_exposure(raw, camera), ccd, "rice")
    return write_packet(directory, packed)


@pytest.fixture
def raw(shared_data: Path) -> Path:
    return shared_data / DECAM_RAW


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    path = tmp_path / "pipelines" / "SingleFrame.yaml"
    path.parent.mkdir()
    path.write_text("description: isr to calibrated image\n")
    return path


def order_for(
    packet: Path,
    tmp_path: Path,
    told: dict[str, object] | None = None,
    *,
    camera: str = "decam",
    hints: tuple[PointingHint, ...] = (),
    **variables: object,
) -> Order:
    setup = setup_file(tmp_path, PIPELINES=tmp_path / "pipelines", **variables)
    known = {"setup": setup, "inputs": INPUTS, "pipeline": "$PIPELINES/SingleFrame.yaml#isr"}
    return Order(
        source=packet,
        camera=camera,
        calibration=Calibration(),
        products=tmp_path / "products",
        settings=Engines(lsst=Lsst(**known | (told or {}))),
        scratch=tmp_path / "scratch" / packet.stem,
        hints=hints,
    )


def wcslib(header: fits.Header) -> WCS:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return WCS(header)


pytestmark = pytest.mark.usefixtures("pipeline")


class TestARealCalexp:
    """The stack's own image of the exposure of which the raw cut-out is."""

    @pytest.fixture
    def calexp(self, shared_data: Path) -> Path:
        return shared_data / CALEXP

    @pytest.fixture
    def order(self, raw: Path, calexp: Path, tmp_path: Path) -> Order:
        return order_for(decam_packet(tmp_path, raw), tmp_path, STANDIN_CALEXP=calexp)

    def test_becomes_a_product(self, order: Order, calexp: Path) -> None:
        product = Path(carry_out(order).reduction.product or "")

        assert product == order.products / "ut200306/23/Starlink1102.g.ut200306.941420_23.fits"
        with fits.open(product) as hdus, fits.open(calexp) as made:
            for number, name in enumerate(("IMAGE", "MASK", "VARIANCE"), start=1):
                assert np.array_equal(hdus[name].data, made[number].data, equal_nan=True)
            assert hdus["MASK"].header["MP_DETECTED"] == 5
            assert hdus[0].header["MAGZERO"] == made[0].header["MAGZERO"]

    def test_has_its_wcs_as_tpv_within_a_milli_arcsec(self, order: Order, calexp: Path) -> None:
        header = fits.getheader(carry_out(order).reduction.product, "IMAGE")
        x, y = (axis.ravel() for axis in np.meshgrid(np.arange(0, 217, 4), np.arange(0, 400, 4)))

        ra, dec = wcslib(header).all_pix2world(x, y, 0)
        true_ra, true_dec = wcslib(fits.getheader(calexp, 1)).all_pix2world(x, y, 0)

        assert header["CTYPE1"] == "RA---TPV"
        east = (ra - true_ra) * np.cos(np.radians(dec))
        assert 3.6e6 * np.hypot(east, dec - true_dec).max() < 1.0

    def test_tells_the_pointing_error_whatever_the_order_of_its_wcs(
        self, raw: Path, calexp: Path, tmp_path: Path
    ) -> None:
        bent = tmp_path / "bent.fits"
        with fits.open(calexp) as hdus:
            planes = [fits.ImageHDU(hdu.data, hdu.header) for hdu in hdus[1:4]]
            planes[0].header.update({"CRPIX1": 108.0, "CRPIX2": 200.0, "A_0_4": 5e-10})
            fits.HDUList([fits.PrimaryHDU(header=hdus[0].header), *planes]).writeto(bent)

        order = order_for(decam_packet(tmp_path, raw), tmp_path, STANDIN_CALEXP=bent)
        reduction = carry_out(order).reduction

        assert "PV1_16" in fits.getheader(reduction.product, "IMAGE")
        assert reduction.offset_arcsec is not None

    def test_tells_its_figures(self, order: Order) -> None:
        reduction = carry_out(order).reduction

        assert reduction.zero_point == pytest.approx(25.1455)
        assert reduction.zero_point_stars == 253
        assert reduction.sky_adu == pytest.approx(2402.152)
        assert reduction.sky_noise_adu == pytest.approx(25.9900956)
        assert "NO_WCS" not in reduction.flags


def test_the_commands_are_those_of_the_manual(raw: Path, tmp_path: Path) -> None:
    order = order_for(decam_packet(tmp_path, raw), tmp_path, {"config": ("isr:doFringe=False",)})

    carry_out(order)

    root = str(order.scratch / "repository0")
    file = str(order.scratch / "raw0" / "decam_00941420_23.fits.fz")
    instrument = "lsst.obs.decam.DarkEnergyCamera"
    exposure = "instrument='DECam' AND exposure=941420"
    assert calls(tmp_path, "butler") == [
        ["create", root],
        ["register-instrument", root, instrument],
        ["write-curated-calibrations", root, instrument],
        ["ingest-raws", root, file, "--transfer", "link"],
        ["define-visits", root, instrument, "--where", exposure],
    ]
    (words,) = calls(tmp_path, "pipetask")
    assert words == [
        *("run", "-b", root, "-i", "DECam/raw/all,DECam/calib", "-o", "prepipe/941420_23"),
        *("-p", f"{tmp_path}/pipelines/SingleFrame.yaml#isr"),
        *("-d", f"{exposure} AND detector=23", "--register-dataset-types"),
        *("-c", "isr:doFringe=False"),
    ]


def test_images_of_newer_pipelines_are_found(raw: Path, tmp_path: Path) -> None:
    packet = decam_packet(tmp_path, raw)

    outcome = carry_out(order_for(packet, tmp_path, STANDIN_DATASET="preliminary_visit_image"))

    assert outcome.reduction.product is not None


def test_hsc_is_reduced_likewise(shared_data: Path, tmp_path: Path) -> None:
    told = {
        "instrument": "lsst.obs.subaru.HyperSuprimeCam",
        "short_name": "HSC",
        "inputs": ("HSC/raw/all", "HSC/calib"),
    }
    packet = hsc_packet(tmp_path, shared_data / HSC_RAW)

    outcome = carry_out(order_for(packet, tmp_path, told, camera="hsc"))

    assert outcome.ccd.number == 55
    assert outcome.reduction.product is not None


class TestWhatGoesWrong:
    @pytest.fixture
    def packet(self, raw: Path, tmp_path: Path) -> Path:
        return decam_packet(tmp_path, raw)

    def test_an_error_with_exit_status_0_is_told(self, packet: Path, tmp_path: Path) -> None:
        with pytest.raises(EngineError, match=r"left no image at prepipe/941420_23.*no bias"):
            carry_out(order_for(packet, tmp_path, STANDIN_FAULT="nothing made"))

    def test_an_image_is_good_whatever_the_exit_status(self, packet: Path, tmp_path: Path) -> None:
        outcome = carry_out(order_for(packet, tmp_path, STANDIN_FAULT="fails at its end"))

        assert outcome.reduction.product is not None

    def test_a_truncated_image_is_no_product(self, packet: Path, tmp_path: Path) -> None:
        with pytest.raises(EngineError, match="is no calibrated CCD"):
            carry_out(order_for(packet, tmp_path, STANDIN_FAULT="truncated"))

    def test_a_program_that_hangs_is_killed(self, packet: Path, tmp_path: Path) -> None:
        order = order_for(packet, tmp_path, {"time_limit_s": 8.0}, STANDIN_FAULT="hang")

        with pytest.raises(EngineError, match="s and was killed; the end of its log"):
            carry_out(order)

    @pytest.mark.parametrize(
        ("told", "message"),
        [
            ({"inputs": ("DECam/raw/all", "refcats")}, "lacks what engines.lsst.inputs names"),
            ({"pipeline": "$NO_DIR/x.yaml"}, "there is no variable 'NO_DIR'"),
            ({"pipeline": "/nowhere/x.yaml"}, "no such file: /nowhere/x.yaml"),
            ({"butler": "butler2"}, "no program butler2"),
            ({"seed": Path("/nowhere")}, "it has no butler.yaml"),
        ],
    )
    def test_wrong_settings_are_the_sites_fault(
        self, packet: Path, tmp_path: Path, told: dict[str, object], message: str
    ) -> None:
        with pytest.raises(ConfigError, match=message):
            carry_out(order_for(packet, tmp_path, told))


def test_an_image_whose_wcs_fits_cannot_tell_climbs_no_ladder_for_ever(
    raw: Path, tmp_path: Path
) -> None:
    rungs = ("same CCD, other exposures", "neighbouring CCDs")
    hints = tuple(PointingHint(rung, 1.0, 2.0, False) for rung in rungs)
    packet = decam_packet(tmp_path, raw)

    order = order_for(packet, tmp_path, hints=hints, STANDIN_FAULT="no fits wcs")
    reduction = carry_out(order).reduction

    assert "NO_WCS" in reduction.flags
    assert reduction.product is not None
    assert {tried.rung for tried in reduction.wcs_tries} == set(rungs)


class TestAPointingError:
    @pytest.fixture
    def truth(self, raw: Path) -> str:
        with fits.open(raw) as hdus:
            header = next(hdu.header for hdu in hdus if hdu.header.get("CCDNUM") == 23)
        return f"{header['CRVAL1']},{header['CRVAL2'] + 60.0 / 3600.0}"

    def test_leaves_a_ccd_without_wcs_and_product(
        self, raw: Path, tmp_path: Path, truth: str
    ) -> None:
        packet = decam_packet(tmp_path, raw)

        outcome = carry_out(order_for(packet, tmp_path, STANDIN_TRUTH=truth))

        assert outcome.reduction.flags == ("NO_WCS", "NO_MATCH")
        assert (outcome.reduction.product, outcome.grade.colour) == (None, Colour.RED)

    def test_is_overcome_with_what_others_tell(self, raw: Path, tmp_path: Path, truth: str) -> None:
        hints = (
            PointingHint("same CCD, other exposures", 0.0, -50.0, False),
            PointingHint("neighbouring CCDs", 1.0, 58.0, False),
        )
        packet = decam_packet(tmp_path, raw)

        order = order_for(packet, tmp_path, hints=hints, STANDIN_TRUTH=truth)
        reduction = carry_out(order).reduction

        assert reduction.product is not None
        assert [tried.accepted for tried in reduction.wcs_tries] == [False, True]

    def test_in_a_shared_repository_is_not_tried_for_ever(
        self, raw: Path, tmp_path: Path, truth: str
    ) -> None:
        hints = (PointingHint("neighbouring CCDs", 0.0, 58.0, False),)
        packet, told = decam_packet(tmp_path, raw), {"repository": tmp_path / "repository"}

        order = order_for(packet, tmp_path, told, hints=hints, STANDIN_TRUTH=truth)
        tries = carry_out(order).reduction.wcs_tries

        assert [tried.rung for tried in tries] == ["header", "neighbouring CCDs"]


class TestASharedRepository:
    def test_is_made_once_and_written_by_one_at_a_time(self, raw: Path, tmp_path: Path) -> None:
        told = {"repository": tmp_path / "repository"}
        orders = [
            order_for(decam_packet(tmp_path / "packets", raw, ccd), tmp_path, told)
            for ccd in (1, 23, 30, 62)
        ]

        with ProcessPoolExecutor(4, multiprocessing.get_context("spawn")) as pool:
            outcomes = list(pool.map(carry_out, orders))

        assert [outcome.ccd.number for outcome in outcomes] == [1, 23, 30, 62]
        assert all(outcome.reduction.product for outcome in outcomes)
        commands = [words[0] for words in calls(tmp_path, "butler")]
        assert (commands.count("create"), commands.count("ingest-raws")) == (1, 4)
        with sqlite3.connect(tmp_path / "repository/gen3.sqlite3") as connection:
            assert connection.execute("SELECT count(*) FROM raw").fetchone() == (4,)

    def test_that_was_left_half_made_is_made_anew(self, raw: Path, tmp_path: Path) -> None:
        told = {"repository": tmp_path / "repository"}
        order = order_for(
            decam_packet(tmp_path, raw), tmp_path, told, STANDIN_FAULT="killed while made"
        )
        with pytest.raises(EngineError, match="register-instrument failed"):
            carry_out(order)

        assert carry_out(order).reduction.product is not None

    def test_of_the_site_is_used_as_it_is(self, raw: Path, tmp_path: Path) -> None:
        told = {"repository": tmp_path / "repository"}
        order = order_for(decam_packet(tmp_path, raw), tmp_path, told)
        carry_out(order)

        carry_out(order)

        commands = [words[0] for words in calls(tmp_path, "butler")]
        assert commands.count("write-curated-calibrations") == 1

    def test_that_is_busy_is_tried_again(self, raw: Path, tmp_path: Path) -> None:
        told = {"repository": tmp_path / "repository"}
        order = order_for(decam_packet(tmp_path, raw), tmp_path, told, STANDIN_FAULT="busy once")

        assert carry_out(order).reduction.product is not None

    def test_goes_on_where_an_earlier_try_ended(self, raw: Path, tmp_path: Path) -> None:
        packet, told = decam_packet(tmp_path, raw), {"repository": tmp_path / "repository"}
        with pytest.raises(EngineError):
            carry_out(order_for(packet, tmp_path, told, STANDIN_FAULT="nothing made"))

        carry_out(order_for(packet, tmp_path, told))

        again = calls(tmp_path, "pipetask")[-1]
        assert again[-3:] == ["--extend-run", "--skip-existing-in", "prepipe/941420_23"]


class TestASeed:
    @pytest.fixture
    def seed(self, tmp_path: Path, raw: Path) -> Path:
        """A repository with calibrations, a catalogue, and raw files of its own."""
        root = tmp_path / "seed"
        carry_out(order_for(decam_packet(tmp_path / "p", raw, 1), tmp_path, {"repository": root}))
        (root / "DECam/calib").mkdir()
        (root / "DECam/calib/flat.fits").touch()
        (root / "refcats/gaia").mkdir(parents=True)
        (tmp_path / "calls.jsonl").unlink()
        return root

    def test_spares_a_ccd_the_making_of_its_repository(
        self, raw: Path, tmp_path: Path, seed: Path
    ) -> None:
        told = {"seed": seed, "inputs": (*INPUTS, "refcats")}

        outcome = carry_out(order_for(decam_packet(tmp_path, raw), tmp_path, told))

        assert outcome.reduction.product is not None
        assert [words[0] for words in calls(tmp_path, "butler")] == ["ingest-raws", "define-visits"]

    def test_is_not_written(self, raw: Path, tmp_path: Path, seed: Path) -> None:
        before = sorted(str(path) for path in seed.rglob("*"))
        registry = (seed / "gen3.sqlite3").read_bytes()

        carry_out(order_for(decam_packet(tmp_path, raw), tmp_path, {"seed": seed}))

        assert sorted(str(path) for path in seed.rglob("*")) == before
        assert (seed / "gen3.sqlite3").read_bytes() == registry

    def test_lends_its_files_without_a_copy(self, tmp_path: Path, seed: Path) -> None:
        link_repository(seed, tmp_path / "own")

        assert (tmp_path / "own/DECam/calib/flat.fits").exists()
        assert (tmp_path / "own/DECam/calib").is_symlink()
        assert not (tmp_path / "own/DECam/raw").exists()


class TestTheDoctor:
    def found(self, settings: Lsst) -> list[str]:
        """What is not well."""
        site = Site(calibration=Calibration(engine="lsst"), engines=Engines(lsst=settings))
        look = open_engine(site).check
        assert look is not None
        return [finding.what for finding in look() if finding.remedy]

    def test_finds_all_well(self, tmp_path: Path) -> None:
        settings = Lsst(setup=setup_file(tmp_path), repository=tmp_path / "repository")

        assert self.found(settings) == []

    @pytest.mark.parametrize(
        ("wrong", "what"),
        [
            ({"setup": Path("/nowhere/setup.sh")}, "setup"),
            ({"pipetask": "pipetask2"}, "pipetask"),
            ({"repository": Path("/dev/null/repo")}, "repository"),
            ({"repository": None}, "seed"),
            ({"repository": None, "seed": Path("/nowhere")}, "seed"),
            ({"time_limit_s": 900.0}, "time limit"),
        ],
    )
    def test_tells_what_is_wrong(self, tmp_path: Path, wrong: dict[str, object], what: str) -> None:
        known = {"setup": setup_file(tmp_path), "repository": tmp_path / "repository"}

        assert self.found(Lsst(**known | wrong)) == [what]


def test_a_site_can_choose_it() -> None:
    assert open_engine(Site(calibration=Calibration(engine="lsst"))).name == "lsst"

"""hscPipe reduces a CCD as an engine; stand-ins follow its commands to the letter."""

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
from stack_orders import HSC_RAW, calls, homes, hsc_packet, hsc_raw, setup_file
from typer.testing import CliRunner

from prepipe.cli import app
from prepipe.cli.settings import commented_toml
from prepipe.config import Calibration, Cluster, Engines, Hscpipe, ProductForm, Site
from prepipe.engines.base import Order
from prepipe.engines.choice import open_engine
from prepipe.engines.stack.hscpipe import carry_out, grid_seeing
from prepipe.errors import ConfigError, EngineError
from prepipe.model import Colour, PointingHint

VISIT_55 = "visit=217870 ccd=55"


@pytest.fixture
def raw(shared_data: Path) -> Path:
    return shared_data / HSC_RAW


@pytest.fixture
def calib(tmp_path: Path) -> Path:
    directory = tmp_path / "CALIB"
    directory.mkdir()
    (directory / "calibRegistry.sqlite3").touch()
    return directory


def order_for(
    packet: Path,
    tmp_path: Path,
    calib: Path,
    told: dict[str, object] | None = None,
    *,
    hints: tuple[PointingHint, ...] = (),
    seeing_arcsec: float | None = None,
    form: ProductForm | None = None,
    **variables: object,
) -> Order:
    settings = {"calibrations": calib, **(told or {})}
    setup = setup_file(tmp_path, **variables)
    return Order(
        source=packet,
        camera="hsc",
        calibration=Calibration(output=form or ProductForm()),
        products=tmp_path / "products",
        settings=Engines(hscpipe=Hscpipe(setup=setup, **settings)),
        scratch=tmp_path / "scratch" / packet.stem,
        hints=hints,
        seeing_arcsec=seeing_arcsec,
    )


def shared(tmp_path: Path, calib: Path) -> dict[str, object]:
    """A repository that nodes share, with its calibrations."""
    root = tmp_path / "repository"
    root.mkdir()
    (root / "CALIB").symlink_to(calib)
    return {"repository": root}


def words_of(tmp_path: Path) -> str:
    (words,) = calls(tmp_path, "hscProcessCcd.py")
    return " ".join(words)


def wcslib(header: fits.Header) -> WCS:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return WCS(header)


class TestAReducedCcd:
    @pytest.fixture
    def order(self, raw: Path, tmp_path: Path, calib: Path) -> Order:
        return order_for(hsc_packet(tmp_path, raw), tmp_path, calib)

    def test_has_the_figures_that_hscpipe_tells(self, order: Order) -> None:
        reduction = carry_out(order).reduction

        assert reduction.seeing_arcsec == pytest.approx(4.0 * 0.17)
        assert (reduction.wcs_rms_mas, reduction.wcs_matches) == (pytest.approx(21.0), 87)
        assert (reduction.zero_point, reduction.zero_point_stars) == (27.1, 80)
        assert (reduction.ellipticity, reduction.sky_adu) == (0.04, 512.5)
        assert reduction.flags == ()

    def test_is_graded(self, order: Order) -> None:
        assert carry_out(order).grade.colour is Colour.GREEN

    def test_is_written_where_others_are(self, order: Order) -> None:
        product = Path(carry_out(order).reduction.product or "")

        assert product == order.products / "ut200528/55/FMa01.HSCr2.ut200528.217870_55.fits"
        assert not list(product.parent.glob(".*"))

    def test_keeps_image_mask_and_variance(self, order: Order, raw: Path) -> None:
        with fits.open(carry_out(order).reduction.product) as hdus:
            assert [hdu.name for hdu in hdus] == ["PRIMARY", "IMAGE", "MASK", "VARIANCE"]
            assert np.array_equal(hdus["IMAGE"].data, fits.getdata(raw)[:, ::-1])
            assert hdus["MASK"].header["MP_SAT"] == 1
            assert hdus["VARIANCE"].data.dtype.kind == "f"
            assert (hdus[0].header["ENGINE"], hdus[0].header["CCDNUM"]) == ("hscpipe", 55)

    def test_has_sound_checksums(self, order: Order) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with fits.open(carry_out(order).reduction.product, checksum=True) as hdus:
                assert all("CHECKSUM" in hdu.header for hdu in hdus)

    def test_has_its_wcs_as_tpv_within_a_milli_arcsec(self, order: Order, tmp_path: Path) -> None:
        product = carry_out(order).reduction.product
        (corr,) = (tmp_path / "scratch").rglob("CORR-0217870-055.fits")
        x, y = (axis.ravel() for axis in np.meshgrid(np.arange(0, 400, 7), np.arange(0, 400, 7)))

        header = fits.getheader(product, "IMAGE")
        ra, dec = wcslib(header).all_pix2world(x, y, 0)
        true_ra, true_dec = wcslib(fits.getheader(corr, 1)).all_pix2world(x, y, 0)

        assert header["CTYPE1"] == "RA---TPV"
        assert not [key for key in header if key.startswith(("A_", "B_"))]
        east = (ra - true_ra) * np.cos(np.radians(dec))
        assert 3.6e6 * np.hypot(east, dec - true_dec).max() < 1.0

    def test_keeps_its_sip_if_that_is_wanted(self, raw: Path, tmp_path: Path, calib: Path) -> None:
        form = ProductForm(wcs="sip")
        order = order_for(hsc_packet(tmp_path, raw), tmp_path, calib, form=form)

        header = fits.getheader(carry_out(order).reduction.product, "IMAGE")

        assert (header["CTYPE1"], header["A_ORDER"]) == ("RA---TAN-SIP", 4)


def test_the_command_is_the_minimal_one(raw: Path, tmp_path: Path, calib: Path) -> None:
    config = tmp_path / "minimal.py"
    config.write_text("root.doDetection=False\n")
    order = order_for(hsc_packet(tmp_path, raw), tmp_path, calib, {"config": config})

    carry_out(order)

    root = order.scratch / "repository"
    assert words_of(tmp_path) == (
        f"{root} --rerun prepipe --id {VISIT_55} -C {config} -c isr.fwhm=1.10 "
        "--clobber-config --no-backup-config --doraise"
    )
    (words,) = calls(tmp_path, "hscIngestImages.py")
    file = order.scratch / "raw" / "HSCA21787010.fits"
    assert words == [str(root), "--create", "--mode=link", str(file)]


def test_the_seeing_of_shortly_before_is_told_to_it(raw: Path, tmp_path: Path, calib: Path) -> None:
    carry_out(order_for(hsc_packet(tmp_path, raw), tmp_path, calib, seeing_arcsec=0.71))

    assert "isr.fwhm=0.71" in words_of(tmp_path)


@pytest.mark.parametrize("codec", ["none", "rice", "wavelet"])
def test_packets_of_every_kind_are_reduced(
    raw: Path, tmp_path: Path, calib: Path, codec: str
) -> None:
    outcome = carry_out(order_for(hsc_packet(tmp_path, raw, codec=codec), tmp_path, calib))

    assert outcome.grade.colour is Colour.GREEN


def test_without_a_seeing_grid_the_seeing_is_not_known(
    raw: Path, tmp_path: Path, calib: Path
) -> None:
    packet = hsc_packet(tmp_path, raw)

    outcome = carry_out(order_for(packet, tmp_path, calib, STANDIN_FAULT="no grid"))

    assert outcome.reduction.seeing_arcsec is None


def test_cells_without_stars_do_not_count(tmp_path: Path) -> None:
    grid = tmp_path / "grid.txt"
    grid.write_text("50 512 512 3.0 0 0 0 0 0 0 0\n50 512 1536 nan 0 0 0 0 0 0 0\n")

    assert grid_seeing(grid) == pytest.approx(0.51)


@pytest.mark.parametrize("text", ["", "nonsense\n", "50 512\n", "50 1 1 nan 0\n"])
def test_a_grid_that_tells_nothing_is_passed_over(tmp_path: Path, text: str) -> None:
    grid = tmp_path / "grid.txt"
    grid.write_text(text)

    assert grid_seeing(grid) is None


class TestWhatGoesWrong:
    @pytest.fixture
    def packet(self, raw: Path, tmp_path: Path) -> Path:
        return hsc_packet(tmp_path, raw)

    def test_an_error_with_exit_status_0_is_told(
        self, packet: Path, tmp_path: Path, calib: Path
    ) -> None:
        order = order_for(packet, tmp_path, calib, STANDIN_FAULT="nothing made")

        with pytest.raises(EngineError, match=r"left no CORR image.*determine a PSF"):
            carry_out(order)
        assert not list((tmp_path / "products").rglob("*.fits"))

    def test_a_missing_catalogue_is_the_sites_fault(
        self, packet: Path, tmp_path: Path, calib: Path
    ) -> None:
        order = order_for(packet, tmp_path, calib, STANDIN_FAULT="no catalogue")

        with pytest.raises(ConfigError, match="setup -j astrometry_net_data"):
            carry_out(order)

    def test_missing_programs_are_the_sites_fault(
        self, packet: Path, tmp_path: Path, calib: Path
    ) -> None:
        order = order_for(packet, tmp_path, calib, {"process": "singleFrameDriver.py"})

        with pytest.raises(ConfigError, match="no program singleFrameDriver"):
            carry_out(order)

    def test_missing_calibrations_are_the_sites_fault(self, packet: Path, tmp_path: Path) -> None:
        order = order_for(packet, tmp_path, tmp_path / "nowhere")

        with pytest.raises(ConfigError, match=r"nowhere is not there"):
            carry_out(order)

    def test_a_raw_file_that_was_not_registered_is_told(
        self, packet: Path, tmp_path: Path, calib: Path
    ) -> None:
        order = order_for(packet, tmp_path, calib, STANDIN_FAULT="ingest does nothing")

        with pytest.raises(EngineError, match="registered no raw file"):
            carry_out(order)

    def test_a_program_that_hangs_is_killed(
        self, packet: Path, tmp_path: Path, calib: Path
    ) -> None:
        order = order_for(packet, tmp_path, calib, {"time_limit_s": 8.0}, STANDIN_FAULT="hang")

        with pytest.raises(EngineError, match="s and was killed; the end of its log"):
            carry_out(order)

    def test_a_truncated_image_is_no_product(
        self, packet: Path, tmp_path: Path, calib: Path
    ) -> None:
        order = order_for(packet, tmp_path, calib, STANDIN_FAULT="truncated")

        with pytest.raises(EngineError, match="is no calibrated CCD"):
            carry_out(order)

    def test_an_image_left_by_an_earlier_try_is_no_product(
        self, packet: Path, tmp_path: Path, calib: Path
    ) -> None:
        told = shared(tmp_path, calib)
        carry_out(order_for(packet, tmp_path, calib, told))

        with pytest.raises(EngineError, match="left no CORR image"):
            carry_out(order_for(packet, tmp_path, calib, told, STANDIN_FAULT="nothing made"))

    def test_a_fit_without_distortion_is_no_wcs(
        self, packet: Path, tmp_path: Path, calib: Path
    ) -> None:
        outcome = carry_out(order_for(packet, tmp_path, calib, STANDIN_FAULT="no sip"))

        assert "NO_WCS" in outcome.reduction.flags
        assert outcome.reduction.wcs_rms_mas is None
        assert outcome.grade.colour is Colour.RED


class TestAPointingError:
    """The header points 100 arcsec west of where the field was."""

    OFF = 100.0

    @pytest.fixture
    def truth(self, raw: Path) -> str:
        header = fits.getheader(raw)
        east = self.OFF / 3600.0 / np.cos(np.radians(header["CRVAL2"]))
        return f"{header['CRVAL1'] + east},{header['CRVAL2']}"

    def hint(self, rung: str, east: float, relaxed: bool = False) -> PointingHint:
        return PointingHint(rung, east, 0.0, relaxed)

    def test_leaves_a_ccd_without_wcs_and_product(
        self, raw: Path, tmp_path: Path, calib: Path, truth: str
    ) -> None:
        packet = hsc_packet(tmp_path, raw)

        outcome = carry_out(order_for(packet, tmp_path, calib, STANDIN_TRUTH=truth))

        assert outcome.reduction.flags == ("NO_WCS", "NO_MATCH")
        assert outcome.reduction.product is None
        assert outcome.grade.colour is Colour.RED

    @pytest.mark.parametrize("own", [True, False], ids=["own repository", "shared repository"])
    def test_is_overcome_with_what_others_tell(
        self, raw: Path, tmp_path: Path, calib: Path, truth: str, own: bool
    ) -> None:
        packet = hsc_packet(tmp_path, raw)
        told = {} if own else shared(tmp_path, calib)
        carry_out(order_for(packet, tmp_path, calib, told, STANDIN_TRUTH=truth))
        hints = (
            self.hint("same CCD, other exposures", 20.0),
            self.hint("same CCD, other exposures", 20.0, relaxed=True),
            self.hint("neighbouring CCDs", 95.0),
        )

        order = order_for(packet, tmp_path, calib, told, hints=hints, STANDIN_TRUTH=truth)
        reduction = carry_out(order).reduction

        assert reduction.flags == ()
        assert [(tried.rung, tried.accepted) for tried in reduction.wcs_tries] == [
            ("same CCD, other exposures", False),
            ("neighbouring CCDs", True),
        ]
        header = fits.getheader(reduction.product, "IMAGE")
        assert header["CRVAL1"] == pytest.approx(float(truth.partition(",")[0]), abs=1e-12)

    def test_tells_every_rung_that_was_tried(
        self, raw: Path, tmp_path: Path, calib: Path, truth: str
    ) -> None:
        hints = (self.hint("neighbouring CCDs", 10.0), self.hint("any CCD of the exposure", 20.0))
        packet = hsc_packet(tmp_path, raw)

        order = order_for(packet, tmp_path, calib, hints=hints, STANDIN_TRUTH=truth)
        tries = carry_out(order).reduction.wcs_tries

        assert [tried.rung for tried in tries] == [hint.rung for hint in hints]

    def test_of_a_whole_frame_is_measured(self, raw: Path, tmp_path: Path, calib: Path) -> None:
        header = fits.getheader(raw)
        whole = tmp_path / "whole.fits"
        pixels = np.full((4241, 2144), 2000, np.uint16)
        fits.PrimaryHDU(pixels, header).writeto(whole)
        east = 12.0 / 3600.0 / np.cos(np.radians(header["CRVAL2"]))
        truth = f"{header['CRVAL1'] + east},{header['CRVAL2'] - 5.0 / 3600.0}"
        packet = hsc_packet(tmp_path / "packets", whole, codec="none")

        reduction = carry_out(order_for(packet, tmp_path, calib, STANDIN_TRUTH=truth)).reduction

        # the SIP of the stand-in moves this CCD, far from its reference pixel, by a tenth
        assert reduction.offset_east_arcsec == pytest.approx(12.0, abs=0.3)
        assert reduction.offset_north_arcsec == pytest.approx(-5.0, abs=0.3)


class TestASharedRepository:
    def test_has_one_writer_at_a_time(self, raw: Path, tmp_path: Path, calib: Path) -> None:
        told = shared(tmp_path, calib)
        orders = [
            order_for(hsc_packet(tmp_path / "packets", raw, ccd), tmp_path, calib, told)
            for ccd in (3, 4, 50, 103)
        ]

        with ProcessPoolExecutor(4, multiprocessing.get_context("spawn")) as pool:
            outcomes = list(pool.map(carry_out, orders))

        assert [outcome.ccd.number for outcome in outcomes] == [3, 4, 50, 103]
        assert all(outcome.grade.colour is Colour.GREEN for outcome in outcomes)
        with sqlite3.connect(tmp_path / "repository/registry.sqlite3") as connection:
            assert connection.execute("SELECT count(*) FROM raw").fetchone() == (4,)
        created = [words for words in calls(tmp_path, "hscIngestImages.py") if "--create" in words]
        assert len(created) == 1
        assert len(homes(tmp_path)) == 4

    def test_gets_a_copy_of_the_raw_file(self, raw: Path, tmp_path: Path, calib: Path) -> None:
        told = shared(tmp_path, calib)

        carry_out(order_for(hsc_packet(tmp_path, raw), tmp_path, calib, told))

        (file,) = (tmp_path / "repository").glob("FMA01/2020-05-28/*/HSC-R2/HSC-*.fits")
        assert file.name == "HSC-0217870-055.fits"
        assert not file.is_symlink()

    def test_is_not_given_a_raw_file_twice(self, raw: Path, tmp_path: Path, calib: Path) -> None:
        order = order_for(hsc_packet(tmp_path, raw), tmp_path, calib, shared(tmp_path, calib))

        carry_out(order)
        carry_out(order)

        assert len(calls(tmp_path, "hscIngestImages.py")) == 1

    def test_forgets_a_raw_file_that_was_left_unregistered(
        self, raw: Path, tmp_path: Path, calib: Path
    ) -> None:
        order = order_for(hsc_packet(tmp_path, raw), tmp_path, calib, shared(tmp_path, calib))
        carry_out(order)
        with sqlite3.connect(tmp_path / "repository/registry.sqlite3") as connection:
            connection.execute("DELETE FROM raw")

        assert carry_out(order).grade.colour is Colour.GREEN

    def test_that_is_busy_is_tried_again(self, raw: Path, tmp_path: Path, calib: Path) -> None:
        told = shared(tmp_path, calib)
        packet = hsc_packet(tmp_path, raw)

        outcome = carry_out(order_for(packet, tmp_path, calib, told, STANDIN_FAULT="busy once"))

        assert outcome.grade.colour is Colour.GREEN


def found_by_the_doctor(settings: Hscpipe, worker_limit_s: float = 600.0) -> list[str]:
    """What is not well."""
    site = Site(
        calibration=Calibration(engine="hscpipe"),
        engines=Engines(hscpipe=settings),
        cluster=Cluster(time_limit_s=worker_limit_s),
    )
    look = open_engine(site).check
    assert look is not None
    return [finding.what for finding in look() if finding.remedy]


class TestTheDoctor:
    def test_finds_all_well(self, tmp_path: Path, calib: Path) -> None:
        settings = Hscpipe(setup=setup_file(tmp_path), calibrations=calib)

        assert found_by_the_doctor(settings) == []

    @pytest.mark.parametrize(
        ("wrong", "what"),
        [
            ({"setup": Path("/nowhere/setup.sh")}, "setup"),
            ({"ingest": "ingestImages.py"}, "ingest"),
            ({"calibrations": Path("/nowhere/CALIB")}, "calibrations"),
            ({"calibrations": None}, "calibrations"),
            ({"config": Path("/nowhere/minimal.py")}, "config"),
            ({"repository": Path("/dev/null/hsc")}, "repository"),
            ({"time_limit_s": 900.0}, "time limit"),
        ],
    )
    def test_tells_what_is_wrong(
        self, tmp_path: Path, calib: Path, wrong: dict[str, object], what: str
    ) -> None:
        settings = Hscpipe(**{"setup": setup_file(tmp_path), "calibrations": calib} | wrong)

        assert found_by_the_doctor(settings) == [what]

    def test_tells_that_a_repository_is_of_another_kind(self, tmp_path: Path) -> None:
        (tmp_path / "_mapper").write_text("lsst.obs.decam.DecamMapper\n")

        settings = Hscpipe(setup=setup_file(tmp_path / "s"), repository=tmp_path)

        assert found_by_the_doctor(settings) == ["repository"]


def test_raw_files_of_single_ccds_are_calibrated_by_hand(
    raw: Path, tmp_path: Path, calib: Path
) -> None:
    files = [hsc_raw(tmp_path / "raw", raw, detector) for detector in (3, 4)]
    settings = Hscpipe(setup=setup_file(tmp_path), calibrations=calib)
    site = Site(
        camera="hsc",
        calibration=Calibration(engine="hscpipe"),
        engines=Engines(hscpipe=settings),
    )
    config = tmp_path / "prepipe.toml"
    config.write_text(commented_toml(site))
    words = ["calibrate", *map(str, files), "--config", str(config), "--out", str(tmp_path / "out")]

    done = CliRunner().invoke(app, words)

    assert done.exit_code == 0, done.output
    products = sorted(path.name for path in (tmp_path / "out").rglob("*.fits"))
    assert products == [f"FMa01.HSCr2.ut200528.217870_{ccd}.fits" for ccd in (3, 4)]


def test_a_site_can_choose_it() -> None:
    engine = open_engine(Site(calibration=Calibration(engine="hscpipe")))

    assert engine.name == "hscpipe"
    assert engine.wants_seeing

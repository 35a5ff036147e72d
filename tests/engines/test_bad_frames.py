"""Whatever frame arrives, the engine answers: with a product that says so, or one clear error."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import fitsio
import numpy as np
import pytest
from astropy.io import fits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.ndimage import uniform_filter1d
from scipy.signal import fftconvolve
from simulated_night import CCDS, Night, order_of

from prepipe.config import Calibration
from prepipe.engines.base import Order, Outcome
from prepipe.engines.builtin.reduce import carry_out
from prepipe.errors import InputError
from prepipe.model import Colour


def changed(night: Night, tmp_path: Path, change: object) -> Outcome:
    """The night's first CCD, uncompressed, after `change` was done to its HDU."""
    with fits.open(night.raw) as hdus:
        image = fits.ImageHDU(hdus[1].data.copy(), hdus[1].header, name="S1")
        primary = hdus[0].copy()
    change(primary, image)
    path = tmp_path / "changed.fits"
    fits.HDUList([primary, image]).writeto(path, output_verify="silentfix")
    return carry_out(order_of(night.root, path, 1, products=tmp_path / "products"))


def doubled(_: fits.PrimaryHDU, image: fits.ImageHDU) -> None:
    data = image.data.astype(np.int32)
    image.data[:] = np.clip(data + np.roll(data, (60, 45), (0, 1)) - 2100, 0, 65535)


def half_read(_: fits.PrimaryHDU, image: fits.ImageHDU) -> None:
    image.data[2000:] = 0


def one_amplifier_dead(_: fits.PrimaryHDU, image: fits.ImageHDU) -> None:
    image.data[:, :1080] = 1500


def test_a_doubled_exposure_never_yields_a_wcs(night: Night, tmp_path: Path) -> None:
    assert changed(night, tmp_path, doubled).reduction.wcs_rms_mas is None


@pytest.mark.parametrize("change", [half_read, one_amplifier_dead])
def test_half_a_frame_is_still_solved_and_says_what_is_missing(
    night: Night, tmp_path: Path, change: object
) -> None:
    outcome = changed(night, tmp_path, change)
    assert outcome.reduction.wcs_rms_mas is not None
    assert "PARTIAL_DEAD" in outcome.reduction.flags
    assert outcome.grade.colour is Colour.ORANGE


# Frames of a camera without peculiarities, cut from the night's calibrated CCD.

SIZE = 1280
CAMERA = """
name = "bench"
pixel_scale = 0.2626
calibrated = true
[cards]
kind = "OBSTYPE"
[detector]
read_noise = 7.0
saturation = 170000.0
[bands.g]
clear_sky_zero_point = 26.61
gaia_terms = [0.13518, -0.46245, -0.25171, 0.021349]
gaia_colours = [-0.5, 2.0]
"""
Pixels = np.ndarray
Change = Callable[["Plain", fits.Header], Pixels]


@dataclass(frozen=True, repr=False)
class Plain:
    """A good frame, e-, and what is needed to spoil it."""

    pixels: Pixels
    header: fits.Header
    sky: float
    rms: float
    root: Path
    reference: Path

    def noise(self, rms: float | None = None) -> Pixels:
        return np.random.default_rng(1).normal(0.0, rms or self.rms, self.pixels.shape)

    @property
    def light(self) -> Pixels:
        return self.pixels - self.sky

    @property
    def rows_and_columns(self) -> tuple[Pixels, Pixels]:
        rows, columns = np.mgrid[0:SIZE, 0:SIZE]
        return rows, columns

    def calibrated(self, change: Change, out: Path) -> Outcome:
        header = self.header.copy()
        pixels = np.asarray(change(self, header))
        path = out / "frame.fits"
        if pixels.dtype.kind == "f":
            pixels = pixels.astype(np.float32)
        fits.PrimaryHDU(pixels, header).writeto(path, output_verify="silentfix")
        told = Calibration(reference=self.reference)
        return carry_out(Order(path, str(self.root / "bench.toml"), told, out, hdu=0))


@pytest.fixture(scope="module")
def plain(night: Night, tmp_path_factory: pytest.TempPathFactory) -> Plain:
    root = tmp_path_factory.mktemp("plain")
    (root / "bench.toml").write_text(CAMERA)
    product = night.outcomes[28].reduction.product
    pixels = fitsio.read(product, ext="IMAGE")[:SIZE, :SIZE].astype(np.float64)
    told = fits.Header(dict(fitsio.read_header(product, ext="IMAGE")))
    header = fits.Header(
        {key: told[key] for key in told if re.match(r"C(TYPE|RVAL|RPIX|D)\d|PV", key)}
    )
    header["CRVAL1"] += 20.0 / 3600
    cards = {"EXPNUM": 941420, "DATE-OBS": "2020-03-06T04:00:00", "EXPTIME": 20.0, "FILTER": "g"}
    header.update({**cards, "OBJECT": "field", "OBSTYPE": "object"})
    sky = float(np.median(pixels))
    rms = 1.4826 * float(np.median(np.abs(pixels - sky)))
    return Plain(pixels, header, sky, rms, root, night.reference)


def put(**cards: object) -> Change:
    def change(plain: Plain, header: fits.Header) -> Pixels:
        header.update({name.replace("E_", "E-"): value for name, value in cards.items()})
        return plain.pixels

    return change


def made(change: Callable[[Plain], Pixels]) -> Change:
    return lambda plain, _: change(plain)


def twice(rows: int, columns: int, part: float) -> Change:
    return made(lambda p: p.pixels + part * np.roll(p.light, (rows, columns), (0, 1)))


def constant(value: float) -> Change:
    return made(lambda p: np.full_like(p.pixels, value))


def three_stars(plain: Plain) -> Pixels:
    pixels = plain.sky + plain.noise()
    grid = np.arange(-15, 16)
    star = 40000 * np.exp(-(grid**2 + grid[:, None] ** 2) / 8.0)
    for y, x in ((300, 500), (700, 800), (1000, 200)):
        pixels[y - 15 : y + 16, x - 15 : x + 16] += star
    return pixels


def donuts(plain: Plain) -> Pixels:
    radius = np.hypot(*np.mgrid[-15:16, -15:16])
    kernel = ((radius < 14) & (radius > 6)).astype(float)
    return plain.sky + fftconvolve(plain.light, kernel / kernel.sum(), "same") + plain.noise()


def focus_sequence(plain: Plain) -> Pixels:
    steps = sum(np.roll(plain.light, 40 * step, 0) for step in range(7))
    return plain.sky + steps / 7 + plain.noise()


def trailed(plain: Plain) -> Pixels:
    return plain.sky + uniform_filter1d(plain.light, 25, axis=0) + plain.noise()


def comet(plain: Plain) -> Pixels:
    rows, columns = plain.rows_and_columns
    return plain.pixels + 60000 * np.exp(
        -(((columns - 600) / 200) ** 2) - ((rows - 500) / 150) ** 2
    )


def galaxy(plain: Plain) -> Pixels:
    rows, columns = plain.rows_and_columns
    return plain.pixels + 20000 * np.exp(-np.hypot(columns - 600, rows - 500) / 250)


def satellite(plain: Plain) -> Pixels:
    rows, columns = plain.rows_and_columns
    return plain.pixels + 90000 * np.exp(-(((columns - 0.7 * rows - 300) / 20.0) ** 2))


def moonlit(plain: Plain) -> Pixels:
    rows, columns = plain.rows_and_columns
    return plain.pixels + 4 * columns + 3 * rows


def hit(plain: Plain, part: float) -> Pixels:
    pixels = plain.pixels[:640, :640].copy()
    return pixels + 5000 * (np.random.default_rng(2).random(pixels.shape) < part)


def half_lost(plain: Plain) -> Pixels:
    lost = np.random.default_rng(3).random(plain.pixels.shape) < 0.5
    return np.where(lost, np.nan, plain.pixels)


GREEN, ORANGE, RED = Colour.GREEN, Colour.ORANGE, Colour.RED
FRAMES: dict[str, tuple[Change, str | None, Colour]] = {
    "as it is": (made(lambda p: p.pixels), None, GREEN),
    # no image
    "blank": (constant(2000.0), "DEAD", RED),
    "noise of the read-out alone": (made(lambda p: 2000 + p.noise(3.0)), "BLANK", RED),
    "saturated": (constant(200000.0), "SATURATED_FRAME", RED),
    "NaN": (constant(np.nan), "DEAD", RED),
    "infinite": (constant(np.inf), "DEAD", RED),
    "beyond a float": (constant(3e38), "SATURATED_FRAME", RED),
    "one pixel": (made(lambda p: p.pixels[:1, :1]), "NO_SOURCES", RED),
    "one row": (made(lambda p: p.pixels[:1]), "NO_SOURCES", RED),
    "one column": (made(lambda p: p.pixels[:, :1]), "NO_SOURCES", RED),
    "half its pixels NaN": (made(half_lost), "NO_ZERO_POINT", ORANGE),
    # the sky
    "cloud of 4 mag": (made(lambda p: p.sky + 0.025 * p.light + p.noise()), None, RED),
    "twilight": (made(lambda p: p.pixels + 60000 + p.noise(245.0)), None, ORANGE),
    "bright twilight": (made(lambda p: p.pixels + 120000 + p.noise(346.0)), None, RED),
    "moonlit slope": (made(moonlit), None, GREEN),
    "comet": (made(comet), None, GREEN),
    "galaxy": (made(galaxy), None, GREEN),
    "wide trail": (made(satellite), None, RED),
    "no stars": (made(lambda p: p.sky + p.noise()), "NO_WCS", RED),
    "three stars": (made(three_stars), "NO_WCS", RED),
    # the telescope
    "trailed": (made(trailed), "TRAILED", RED),
    "out of focus": (made(donuts), None, RED),
    "focus sequence": (made(focus_sequence), "AMBIGUOUS", RED),
    "guiding jump": (twice(7, 4, 0.7), "AMBIGUOUS", RED),
    "doubled": (twice(60, 45, 1.0), "AMBIGUOUS", RED),
    "doubled 12 arcsec away, faintly": (twice(45, 0, 0.15), "AMBIGUOUS", RED),
    "doubled 2.6 arcsec away": (twice(10, 0, 0.4), "AMBIGUOUS", RED),
    "doubled 0.8 arcsec away": (twice(3, 0, 1.0), "TOO_MUCH_LIGHT", RED),
    "doubled 0.8 arcsec away, unequally": (twice(3, 0, 0.4), "TOO_MUCH_LIGHT", RED),
    "wrong field": (lambda p, h: put(CRVAL1=h["CRVAL1"] + 0.7)(p, h), "NO_MATCH", RED),
    "a twentieth cosmic rays": (made(lambda p: hit(p, 0.05)), "MANY_COSMIC_RAYS", ORANGE),
    "half cosmic rays": (made(lambda p: hit(p, 0.5)), "MANY_COSMIC_RAYS", RED),
    # the header
    "CRVAL NaN": (put(CRVAL1="NaN"), "NO_NOMINAL_WCS", RED),
    "CRVAL beyond the pole": (put(CRVAL2=200.0), "NO_NOMINAL_WCS", RED),
    "CD zero": (put(CD1_1=0.0, CD1_2=0.0, CD2_1=0.0, CD2_2=0.0), "NO_NOMINAL_WCS", RED),
    "CD tiny": (put(CD1_1=1e-300, CD1_2=0.0, CD2_1=0.0, CD2_2=1e-300), "NO_NOMINAL_WCS", RED),
    "PV huge": (put(PV1_1=1e200), "NO_WCS", RED),
    "no projection": (put(CTYPE1="XX--FOO"), "NO_NOMINAL_WCS", RED),
    "EXPTIME zero": (put(EXPTIME=0.0), "NO_EXPOSURE_TIME", ORANGE),
    "EXPTIME too short by half": (put(EXPTIME=10.0), "TOO_MUCH_LIGHT", RED),
    "OBJECT of 60 characters": (put(OBJECT="x" * 60), None, GREEN),
    "OBJECT that climbs": (put(OBJECT="../../etc/passwd"), None, GREEN),
    "FILTER empty": (put(FILTER=""), "OTHER_BAND", Colour.YELLOW),
    "FILTER long": (put(FILTER="y" * 60), "OTHER_BAND", Colour.YELLOW),
    "dark": (put(OBSTYPE="dark"), "OTHER_KIND", ORANGE),
    "sky flat": (put(OBSTYPE="sky flat"), "OTHER_KIND", ORANGE),
}


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("name", FRAMES)
def test_whatever_the_frame_there_is_a_product_with_its_flag_and_colour(
    plain: Plain, tmp_path: Path, name: str
) -> None:
    change, flag, colour = FRAMES[name]
    outcome = plain.calibrated(change, tmp_path)
    assert outcome.grade.colour is colour, outcome.grade.reasons
    assert bool(outcome.grade.reasons) == (colour is not GREEN)
    assert flag is None or flag in outcome.reduction.flags
    for path in (outcome.reduction.product, outcome.reduction.catalogue):
        assert Path(path).is_file()
        assert tmp_path in Path(path).parents
    header = fitsio.read_header(outcome.reduction.product, ext="IMAGE")
    assert header["GRADE"] == colour.value


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (put(EXPNUM=2**64), "EXPNUM"),
        (put(EXPNUM=-3), "EXPNUM"),
        (put(EXPNUM=1.5), "EXPNUM"),
        (put(EXPTIME=-5.0), "EXPTIME"),
        (put(EXPTIME="NaN"), "EXPTIME"),
        (put(EXPTIME=1e300), "EXPTIME"),
        (put(DATE_OBS="9999-12-31T23:59:59"), "9999-12-31"),
        (put(DATE_OBS="0001-01-01T00:00:00"), "0001-01-01"),
        (put(DATE_OBS="yesterday"), "yesterday"),
        (made(lambda p: p.pixels[None].repeat(2, 0)), "no image with two axes"),
        (made(lambda p: p.pixels.astype(np.int64)), "raw pixels are int64"),
    ],
)
def test_what_cannot_be_is_one_clear_sentence(
    plain: Plain, tmp_path: Path, change: Change, complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint) as told:
        plain.calibrated(change, tmp_path)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("gain", [0.0, -4.0])
def test_a_gain_that_cannot_be_is_one_clear_sentence(
    night: Night, tmp_path: Path, gain: float
) -> None:
    def change(_: fits.PrimaryHDU, image: fits.ImageHDU) -> None:
        image.header["GAINA"] = gain

    with pytest.raises(InputError, match="amplifier A has a gain of"):
        changed(night, tmp_path, change)


@pytest.mark.parametrize(
    ("keyword", "where"),
    [("BIASSECA", "extension"), ("EXPTIME", "primary"), ("CCDNUM", "extension")],
)
def test_a_missing_card_is_one_clear_error(
    night: Night, tmp_path: Path, keyword: str, where: str
) -> None:
    def drop(primary: fits.PrimaryHDU, image: fits.ImageHDU) -> None:
        del (primary if where == "primary" else image).header[keyword]

    with pytest.raises(InputError, match=keyword):
        changed(night, tmp_path, drop)


def test_pixels_of_a_wrong_type_are_one_clear_error(night: Night, tmp_path: Path) -> None:
    def to_complex(_: fits.PrimaryHDU, image: fits.ImageHDU) -> None:
        image.data = image.data.astype(np.int64)

    with pytest.raises(InputError, match="raw pixels are"):
        changed(night, tmp_path, to_complex)


def test_a_truncated_file_is_one_clear_error(night: Night, tmp_path: Path) -> None:
    whole = night.raw.read_bytes()
    path = tmp_path / "cut.fits.fz"
    path.write_bytes(whole[: len(whole) // 3])
    with pytest.raises(InputError, match=r"cut\.fits\.fz"):
        carry_out(order_of(night.root, path, 1, products=tmp_path))


def test_without_masters_the_grade_says_so(night: Night, tmp_path: Path) -> None:
    order = order_of(night.root, night.raw, 1, calibrations=None, products=tmp_path)
    outcome = carry_out(order)
    assert {"NO_BIAS", "NO_FLAT"} <= set(outcome.reduction.flags)
    assert outcome.grade.colour is Colour.YELLOW
    assert outcome.reduction.ccd in CCDS


# Any header at all, on a frame of 200 x 200 pixels.

KEYWORDS = (
    *("EXPNUM", "DATE-OBS", "EXPTIME", "FILTER", "OBJECT", "OBSTYPE", "EXTNAME"),
    *("CTYPE1", "CTYPE2", "CUNIT1", "CRVAL1", "CRVAL2", "CRPIX1", "CRPIX2", "CD1_1", "CD1_2"),
    *("CD2_1", "CD2_2", "CDELT1", "PC1_1", "CROTA2", "PV1_0", "PV1_1", "PV2_1", "PV2_39"),
    *("EQUINOX", "RADESYS", "LONPOLE", "LATPOLE", "WCSAXES", "BZERO", "BSCALE", "BLANK"),
    *("CHECKSUM", "DATASUM", "INHERIT", "HISTORY", "COMMENT", "GAIN", "RDNOISE", "SATURATE"),
    *("DATASEC", "BIASSEC", "CCDNUM"),
)
NUMBERS = st.floats().map(repr) | st.integers(-(2**70), 2**70).map(str)
TEXTS = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=66)
VALUES = st.one_of(
    NUMBERS,
    TEXTS,
    TEXTS.map(lambda text: f"'{text}'"),
    st.sampled_from(("", "T", "NaN", "1D400", "-Inf", "''", "'[1:200,1:200]'", "'[0:0,9:9]'", "0")),
    st.sampled_from(("'2020-03-06T04:00:00'", "'2020-02-30'", "'9999-12-31T23:59:59'")),
)
TINY_CAMERA = """
name = "tiny"
pixel_scale = 0.2626
[cards]
kind = "OBSTYPE"
gain = "GAIN"
read_noise = "RDNOISE"
saturation = "SATURATE"
"""


def tiny_frame(cards: dict[str, str | None], header: fits.Header) -> bytes:
    """A FITS file of 200 x 200 pixels, with these texts in place of the header's values."""
    told = {"SIMPLE": "T", "BITPIX": "-32", "NAXIS": "2", "NAXIS1": "200", "NAXIS2": "200"}
    told |= {key: repr(value) for key, value in header.items()}
    told |= {key: text for key, text in cards.items() if text is not None}
    lines = [f"{key:8s}= {text}"[:80].ljust(80) for key, text in told.items()]
    lines = [line for line in lines if cards.get(line[:8].strip(), "") is not None]
    head = "".join([*lines, "END".ljust(80)])
    pixels = np.random.default_rng(1).normal(2000, 30, (200, 200)).astype(">f4").tobytes()
    pad = -len(pixels) % 2880
    return head.ljust(-(-len(head) // 2880) * 2880).encode() + pixels + bytes(pad)


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(cards=st.dictionaries(st.sampled_from(KEYWORDS), st.none() | VALUES, max_size=4))
def test_any_header_ends_in_a_product_or_in_one_clear_sentence(
    plain: Plain, cards: dict[str, str | None]
) -> None:
    path, camera = plain.root / "tiny.fits", plain.root / "tiny.toml"
    camera.write_text(TINY_CAMERA)
    path.write_bytes(tiny_frame(cards, plain.header))
    out = plain.root / "tiny"
    order = Order(path, str(camera), Calibration(reference=plain.reference), out, hdu=0)
    try:
        outcome = carry_out(order)
    except InputError as error:
        assert str(error)
        assert "\n" not in str(error)
        return
    assert outcome.grade.colour is Colour.RED  # there is no star in it
    assert out in Path(outcome.reduction.product).parents
    assert Path(outcome.reduction.product).is_file()

"""The page about a CCD tells what there is, and is drawn whatever there is not."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from prepipe.calibrate.flags import Mask
from prepipe.quality import maps, plots
from prepipe.quality.look import CalibratedCcd, draw_ccd, page_of

SHAPE = (1024, 512)
CD = np.array([[0.0, 7.3e-5], [-7.3e-5, 0.0]])
"""North to the left, east up, as DECam has it."""

COLUMNS = (
    *("X", "Y", "RA", "DEC", "POSERR", "FLUX", "MAG", "MAGERR", "SNR"),
    *("XX", "YY", "XY", "HLR", "REFRA", "REFDEC", "REFMAG"),
)
CARDS = {
    **{"GRADE": "green", "OBJECT": "field 1", "FILTER": "g", "EXPTIME": 20.0, "EXPNUM": 941420},
    **{"CCDNUM": 28, "NIGHT": "2020-03-05", "DATE-OBS": "2020-03-06T03:30:00", "WCSOK": True},
    **{"SEEING": 1.0, "WCSRMS": 20.0, "WCSNUM": 300, "ZEROPNT": 26.6, "ZEROSCAT": 0.01},
    **{"MAGLIM": 23.0, "NSOURCES": 400},
}


def stars(count: int, *, matched: bool = True, e1: float = 0.0) -> np.ndarray:
    """Bright stars of sigma 2 pixels, and how the catalogue has them."""
    random = np.random.default_rng(1)
    table = np.zeros(
        count, [*((name, "f8") for name in COLUMNS), ("FLAGS", "i4"), ("MATCHED", "?")]
    )
    table["X"], table["Y"] = random.uniform(1, SHAPE[::-1], (count, 2)).T
    table["XX"], table["YY"] = 4.0 * (1 + e1), 4.0 * (1 - e1)
    table["MAG"] = random.uniform(15, 21, count)
    table["FLUX"] = 10 ** (-0.4 * (table["MAG"] - 29.0))
    table["SNR"], table["MAGERR"], table["HLR"] = 100.0, 0.01, 2.4
    table["RA"], table["DEC"] = 150.0, 2.0
    for name in ("RA", "DEC", "MAG"):
        table[f"REF{name}"] = table[name] if matched else np.nan
    table["MATCHED"] = matched
    return table


def a_ccd(**changes: object) -> CalibratedCcd:
    image = np.random.default_rng(2).normal(100, 10, SHAPE).astype(np.float32)
    told = {
        "image": image,
        "mask": np.zeros(SHAPE, np.uint8),
        "sources": stars(400),
        "cards": CARDS,
        "cd": CD,
        **changes,
    }
    return CalibratedCcd(**told)


UNSOLVED = {key: CARDS[key] for key in ("OBJECT", "SEEING")} | {
    "GRADE": "red",
    "WCSOK": False,
    "WHY1": "no WCS found: check the field and the pointing",
}
POOR = {
    "solved": {},
    "landscape, with sources on its edge": {
        "image": np.ones((400, 512), np.float32), "mask": np.zeros((400, 512), np.uint8),
    },
    "with stars that were not found": {"missing": np.array([[10.0, 20.0], [30.0, 40.0]])},
    "not solved": {"cards": UNSOLVED, "sources": stars(400, matched=False)},
    "without any WCS": {"cards": UNSOLVED, "sources": stars(400, matched=False), "cd": None},
    "without sources": {"cards": UNSOLVED, "sources": stars(0)},
    "with one source": {"sources": stars(1)},
    "without a zero point": {
        "cards": {key: value for key, value in CARDS.items() if not key.startswith(("ZERO", "MAG"))}
    },
    "blank": {"image": np.zeros(SHAPE, np.float32), "cards": UNSOLVED, "sources": stars(0)},
    "not a number": {
        "image": np.full(SHAPE, np.nan, np.float32), "cards": UNSOLVED, "sources": stars(0),
    },
    "all masked": {
        "mask": np.full(SHAPE, Mask.DEAD, np.uint8), "cards": UNSOLVED, "sources": stars(0),
    },
    "without cards": {"cards": {}},
}  # fmt: skip


@pytest.mark.parametrize("changes", POOR.values(), ids=POOR.keys())
@pytest.mark.filterwarnings("error")
def test_a_page_is_drawn_of_every_ccd(changes: dict[str, object]) -> None:
    page = page_of(a_ccd(**changes))
    page.set_layout_engine("none")  # which takes most of the time
    page.savefig(io.BytesIO(), dpi=40)
    told = [text.get_text() for text in page.subfigs[0].axes[0].texts]
    assert told[0] in {"GREEN", "RED", "NO GRADE"}
    assert (told[-1] == "no WCS found: check the field and the pointing") == (told[0] == "RED")


def test_the_page_is_a_png_as_wide_as_a_screen(tmp_path: Path) -> None:
    draw_ccd(tmp_path / "page.png", a_ccd())
    assert matplotlib.image.imread(tmp_path / "page.png").shape[:2] == (1100, 1870)


def test_whiskers_lie_along_the_stars_longer_axis() -> None:
    for e1, shown in ((0.05, (1.0, 0.0)), (-0.05, (0.0, 1.0))):
        axes = Figure().add_subplot()
        maps.draw_widths(axes, SHAPE, stars(400, e1=e1), CARDS, CD)
        whiskers = next(c for c in axes.collections if hasattr(c, "U"))
        found = np.abs([whiskers.U.mean(), whiskers.V.mean()])
        np.testing.assert_allclose(found, 0.05 * np.array(shown), atol=1e-6)


def test_the_map_of_widths_is_told_in_units_of_the_seeing() -> None:
    axes = Figure().add_subplot()
    maps.draw_widths(axes, SHAPE, stars(400), CARDS | {"SEEING": 1.23}, CD)
    assert "1.23 arcsec" in axes.get_title()


def test_a_residual_points_on_the_ccd_where_it_points_on_the_sky() -> None:
    found = stars(400)
    found["DEC"] += 20 / 3.6e6
    axes = Figure().add_subplot()
    maps.draw_residuals(axes, SHAPE, found, CD)
    arrows = [c for c in axes.collections if hasattr(c, "U")][1]
    # North is at the left of this CCD.
    np.testing.assert_allclose(arrows.U, -20.0, atol=1e-3)
    np.testing.assert_allclose(arrows.V, 0.0, atol=1e-3)


def test_residuals_are_not_torn_where_ra_begins_anew() -> None:
    found = stars(2)
    found["RA"], found["REFRA"], found["DEC"] = [1e-6, 359.999999], [359.999999, 1e-6], 60.0
    found["REFDEC"] = 60.0
    east, north = maps.residuals(found)
    np.testing.assert_allclose(east, [3.6, -3.6], rtol=1e-6)
    np.testing.assert_array_equal(north, 0.0)


def test_the_running_scatter_is_that_of_the_stars() -> None:
    random = np.random.default_rng(3)
    mag = random.uniform(15, 21, 4000)
    truth = 0.01 + 0.02 * (mag - 15)
    middles, medians, scatter, formal = plots.running(mag, random.normal(0, truth), truth)
    expected = 0.01 + 0.02 * (middles - 15)
    count = 4000 // 12
    # A median absolute deviation scatters by 1.17 / sqrt(n); the truth varies within a bin.
    np.testing.assert_allclose(scatter, expected, rtol=4 * 1.17 / np.sqrt(count), atol=0.003)
    np.testing.assert_allclose(formal, expected, atol=0.002)
    assert np.abs(medians / expected).max() < 5 * 1.25 / np.sqrt(count)


def test_the_mask_shows_the_worst_of_each_block() -> None:
    mask = np.zeros((1024, 1024), np.uint8)
    mask[101, 203] = Mask.COSMIC_RAY
    mask[301, 403] = Mask.COSMIC_RAY | Mask.SATURATED
    axes = Figure().add_subplot()
    maps.draw_mask(axes, mask)
    shown = axes.images[0].get_array()
    names = [name for name, *_ in maps.MASKED]
    assert names[shown[50, 101] - 1] == "cosmic ray"
    assert names[shown[150, 201] - 1] == "saturated"
    assert np.count_nonzero(shown) == 2

"""Tables of crosstalk, linearity and bad pixels: the real ones, and those that are wrong."""

from __future__ import annotations

import os
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from prepipe.engines.detector.bad_pixel_maps import find_map, read_map
from prepipe.engines.detector.tables import read_crosstalk, read_linearity
from prepipe.errors import ConfigError
from prepipe.model import Amplifier, Box, Ccd, Layout

NIGHT = datetime(2020, 3, 6, 4, tzinfo=UTC)
N19 = Ccd(50, "N19")
S1 = Ccd(25, "S1")
BOXES = "x0,y0,width,height\n3,5,2,4\n"
ROW = "ccd25B ccd25A 1e-4 1e-5 4e4 1e-4 1e-8 1e-12\n"


def ccd_layout(rows: int = 4096, columns: int = 2048) -> Layout:
    box = Box(0, columns, 0, rows)
    amplifier = Amplifier("A", box, None, box, 4.0, 6.0, 60000.0)
    return Layout((rows, columns), (rows, columns), (amplifier,))


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_the_observatorys_crosstalk_is_read(shared_data: Path) -> None:
    table = read_crosstalk(shared_data / "constants/decam/DECam_xtalk_20130606.txt")
    assert sum(len(found) for found in table.couplings.values()) == 249
    within = {(c.victim, c.source): c for c in table.within(25)}
    assert set(within) == {("A", "B"), ("B", "A")}
    ghost = within["B", "A"]
    assert (ghost.coefficient, ghost.onset) == (1.34e-4, 40781.54)
    assert ghost.polynomial == (1.53754e-4, -6.980507e-8, 5.963848e-12)
    assert {ccd: len(c) for ccd, c in table.between(26).items()} == {25: 3, 27: 2}
    # From CCD to CCD the shares are linear up to any signal.
    assert all(c.onset > 65535 for found in table.between(26).values() for c in found)


def test_no_real_coupling_joins_ccds_whose_rows_are_read_from_opposite_ends(
    shared_data: Path,
) -> None:
    table = read_crosstalk(shared_data / "constants/decam/DECam_xtalk_20130606.txt")
    sides = Counter((victim <= 31, source <= 31) for victim, source in table.couplings)
    assert set(sides) == {(True, True), (False, False)}


def test_a_plain_csv_of_crosstalk_is_read(tmp_path: Path) -> None:
    path = written(tmp_path / "x.csv", "victim,source,coefficient\nccd01A,1B,-2e-4\n1A,2A,3e-5\n")
    table = read_crosstalk(path)
    (within,) = table.within(1)
    assert (within.victim, within.source, within.coefficient) == ("A", "B", -2e-4)
    assert within.onset == np.inf
    assert set(table.between(1)) == {2}


def test_a_table_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    path = written(tmp_path / "x.csv", "victim,source,coefficient\n1A,1B,1e-4\n")
    first = read_crosstalk(path)
    assert read_crosstalk(path) is first
    written(path, "victim,source,coefficient\n1A,1B,2e-4\n")
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))
    assert read_crosstalk(path).within(1)[0].coefficient == 2e-4


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "does not exist"),
        ("# nothing\n", "no rows"),
        ("victim,source\n1A,1B\n", "no column coefficient"),
        ("victim,source,coefficient\n1A,1B,\n", "incomplete"),
        ("victim,source,coefficient\n1A,1B,nan\n", "finite"),
        ("victim,source,coefficient\n1A,1B,much\n", "no number"),
        ("victim,source,coefficient\n1A,1B,5\n", "no share"),
        ("victim,source,coefficient\n1A,1A,1e-4\n", "its own"),
        ("victim,source,coefficient\n1A,1B,1e-4\n1A,1B,1e-4\n", "twice"),
        ("victim,source,coefficient\nleft,1B,1e-4\n", "'left' is no amplifier"),
        (ROW.replace("4e4", "-1"), "onset"),
        (ROW.replace("1e-8", "nan"), "finite"),
        ("ccd25B ccd25A 1e-4 1e-5\n", "neither"),
        (
            "SIMPLE  =                    T / conforms to FITS standard",
            "is neither|is no amplifier",
        ),
    ],
)
def test_wrong_crosstalk_is_one_clear_sentence(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "xtalk.txt"
    if text is not None:
        written(path, text)
    with pytest.raises(ConfigError, match=why) as caught:
        read_crosstalk(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def linearity_hdu(
    card: int | None = None, name: str = "", columns: str = "AB", bend: float = 1e-7
) -> fits.BinTableHDU:
    adu = np.arange(65536.0)
    found = [fits.Column("ADU", "D", array=adu)]
    found += [
        fits.Column(f"ADU_LINEAR_{x}", "D", array=adu * (1 + k * bend * adu))
        for k, x in enumerate(columns, start=1)
    ]
    hdu = fits.BinTableHDU.from_columns(found, name=name)
    if card is not None:
        hdu.header["CCDNUM"] = card
    return hdu


@pytest.mark.parametrize("by", ["card", "name", "place"])
def test_the_observatorys_form_of_linearity_is_read(tmp_path: Path, by: str) -> None:
    def hdu(ccd: Ccd, bend: float) -> fits.BinTableHDU:
        return linearity_hdu(
            ccd.number if by == "card" else None, ccd.name if by == "name" else "", bend=bend
        )

    one, two = Ccd(1, "S29"), Ccd(2, "S30")
    fits.HDUList([fits.PrimaryHDU(), hdu(one, 1e-7), hdu(two, 2e-7)]).writeto(tmp_path / "l.fits")
    tables = read_linearity(tmp_path / "l.fits", two)
    assert tables is not None
    assert set(tables) == {"A", "B"}
    # float32 of 40 000
    assert tables["A"][40000] == pytest.approx(40000 + 2e-7 * 40000**2, abs=0.004)
    assert tables["B"][40000] == pytest.approx(40000 + 4e-7 * 40000**2, abs=0.004)
    assert read_linearity(tmp_path / "l.fits", Ccd(3, "S31")) is None


def test_a_csv_of_linearity_is_interpolated(tmp_path: Path) -> None:
    text = "ccd,amplifier,adu,linear_adu\n1,A,0,0\n1,A,10000,10100\n1,a,20000,20000\n2,B,0,1\n"
    tables = read_linearity(written(tmp_path / "l.csv", text), Ccd(1, "S29"))
    assert tables is not None
    assert set(tables) == {"A"}
    assert tables["A"][[0, 5000, 10000, 15000, 30000]].tolist() == [0, 5050, 10100, 15050, 30000]
    assert read_linearity(tmp_path / "l.csv", Ccd(3, "S31")) is None


CSV = "ccd,amplifier,adu,linear_adu\n"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "does not exist"),
        (CSV, "no rows"),
        ("ccd,adu,linear_adu\n1,0,0\n", "no column amplifier"),
        (f"{CSV}1,A,nan,0\n", "finite"),
        (f"{CSV}1,A,0,0\n1,A,0,5\n", "ascend"),
    ],
)
def test_a_wrong_csv_of_linearity_is_one_clear_sentence(
    tmp_path: Path, text: str, why: str
) -> None:
    path = tmp_path / "l.csv"
    if text is not None:
        written(path, text)
    with pytest.raises(ConfigError, match=why) as caught:
        read_linearity(path, Ccd(1, ""))
    assert str(path) in str(caught.value)


def test_wrong_fits_of_linearity_is_one_clear_sentence(tmp_path: Path) -> None:
    (tmp_path / "text.fits").write_text("no FITS")
    fits.PrimaryHDU(np.zeros((3, 3))).writeto(tmp_path / "image.fits")
    fits.HDUList([fits.PrimaryHDU(), linearity_hdu(1, columns="")]).writeto(
        tmp_path / "columns.fits"
    )
    fits.HDUList([fits.PrimaryHDU(), linearity_hdu(1), linearity_hdu(1)]).writeto(
        tmp_path / "two.fits"
    )
    broken = linearity_hdu(1)
    broken.data["ADU_LINEAR_B"][7] = np.nan
    fits.HDUList([fits.PrimaryHDU(), broken]).writeto(tmp_path / "nan.fits")
    for name, why in (
        ("text", "cannot be read"),
        ("image", "no HDU"),
        ("columns", "no columns ADU"),
        ("two", "2 HDUs of CCD 1"),
        ("nan", "finite"),
    ):
        with pytest.raises(ConfigError, match=why):
            read_linearity(tmp_path / f"{name}.fits", Ccd(1, ""))


def test_the_observatorys_defects_are_read(shared_data: Path) -> None:
    path = shared_data / "constants/decam/defects_n19_20130115.ecsv"
    found = find_map(path, N19, NIGHT)
    assert found is not None
    assert (found.ccds, found.since) == ({50}, datetime(2013, 1, 15, 1, 30, tzinfo=UTC))
    bad = read_map(found, N19, ccd_layout())
    # Its first lines: 535 16 1 1 and 533 17 2 1.
    assert bad[16, 535]
    assert bad[17, 533:535].all()
    assert not bad[16, 533]
    assert 0 < bad.mean() < 0.05
    assert find_map(path, S1, NIGHT) is None
    assert find_map(path, N19, datetime(2013, 1, 14, tzinfo=UTC)) is None


def test_of_a_directory_the_latest_map_not_after_the_exposure_is_taken(tmp_path: Path) -> None:
    for name in ("n19/2013-01-15T01:30:00", "n19/2019-05-01", "n19/2021-01-01", "s1/2020-01-01"):
        path = tmp_path / f"{name}.csv"
        path.parent.mkdir(exist_ok=True)
        path.write_text(BOXES)
    (tmp_path / "ccd26_20200101.csv").write_text(BOXES)
    (tmp_path / "README.txt").write_text("of no concern")
    found = find_map(tmp_path, N19, NIGHT)
    assert found is not None
    assert found.path == tmp_path / "n19" / "2019-05-01.csv"
    assert find_map(tmp_path, S1, NIGHT).path == tmp_path / "s1" / "2020-01-01.csv"
    assert find_map(tmp_path, Ccd(26, "S2"), NIGHT).path.name == "ccd26_20200101.csv"
    assert find_map(tmp_path, Ccd(27, "S3"), NIGHT) is None


def test_one_csv_may_hold_the_boxes_of_all_ccds(tmp_path: Path) -> None:
    path = written(tmp_path / "all.csv", "ccd,x0,y0,width,height\n25,0,0,1,1\n50,2,2,3,3\n")
    assert read_map(find_map(path, S1, NIGHT), S1, ccd_layout(9, 9)).sum() == 1
    assert read_map(find_map(path, N19, NIGHT), N19, ccd_layout(9, 9)).sum() == 9
    assert find_map(path, Ccd(26, "S2"), NIGHT) is None


@pytest.mark.parametrize("ending", [".fits", ".fits.gz"])
def test_masks_of_all_ccds_may_lie_in_one_fits_file(tmp_path: Path, ending: str) -> None:
    hdus = [fits.PrimaryHDU()]
    for ccd, row in ((25, 1), (50, 2)):
        image = np.zeros((9, 9), np.int16)
        image[row] = 5
        hdus.append(fits.ImageHDU(image))
        hdus[-1].header["CCDNUM"] = ccd
    hdus[1].header["HIERARCH CALIBDATE"] = "2018-01-01"
    path = tmp_path / f"bpm{ending}"
    fits.HDUList(hdus).writeto(path)
    bad = read_map(find_map(path, N19, NIGHT), N19, ccd_layout(9, 9))
    assert bad[2].all()
    assert bad.sum() == 9
    assert find_map(path, N19, datetime(2017, 1, 1, tzinfo=UTC)) is None


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("m.csv", None, "does not exist"),
        ("ccd25.csv", "x0,y0,width\n1,1,1\n", "no column height"),
        ("ccd25.csv", "x0,y0,width,height\n1,1,1,nan\n", "whole, finite"),
        ("ccd25.csv", "x0,y0,width,height\n1,1,1,0\n", "whole, finite"),
        ("ccd25.csv", "x0,y0,width,height\n1,1,wide,1\n", "cannot be read"),
        ("ccd25.ecsv", "x0 y0\n1 1\n", "no column width|cannot be read"),
        ("ccd25.fits", "no FITS", "cannot be read"),
        ("map.csv", BOXES, "does not say which CCD"),
        ("ccd25.txt", BOXES, "ends in none of"),
    ],
)
def test_a_wrong_map_is_one_clear_sentence(
    tmp_path: Path, name: str, text: str | None, why: str
) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=why) as caught:
        read_map(find_map(path, S1, NIGHT), S1, ccd_layout(9, 9))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mask_of_another_shape_and_an_empty_directory_are_refused(tmp_path: Path) -> None:
    fits.PrimaryHDU(np.zeros((3, 3), np.int16)).writeto(tmp_path / "ccd25.fits")
    with pytest.raises(ConfigError, match="fits neither"):
        read_map(find_map(tmp_path, S1, NIGHT), S1, ccd_layout(9, 9))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"has no \.ecsv"):
        find_map(tmp_path / "empty", S1, NIGHT)

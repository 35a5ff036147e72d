"""Products in other words: SIP for TPV, Parquet for FITS, floats for steps; always complete."""

from __future__ import annotations

import subprocess
import warnings
from pathlib import Path

import fitsio
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from product_forms import CCD, calibrated
from pyarrow import parquet
from simulated_night import Night

from prepipe.codec.checksums import verify_checksums
from prepipe.engines.base import Outcome
from prepipe.engines.builtin import catalogue
from prepipe.engines.builtin.catalogue import read_catalogue, write_catalogues
from prepipe.engines.builtin.wcs import convert_wcs
from prepipe.engines.products import Plane, write_image
from prepipe.errors import FitsError, InputError, StorageError

PLANES = ("IMAGE", "MASK", "WEIGHT")
COLUMNS = {
    "X": (np.array([1.5, 2.25]), "pixel"),
    "FLUX": (np.array([10.0, np.nan], np.float32), "electron"),
    "FLAGS": (np.array([0, 3], np.int32), ""),
    "MATCHED": (np.array([True, False]), ""),
}
CARDS = [
    ("OBJECT", "field 1", "field"),
    ("SEEING", np.float64(1.17), "[arcsec]"),
    ("WCSOK", True, ""),
    ("NSOURCES", np.int64(2), ""),
]


@pytest.fixture(scope="module")
def usual(night: Night) -> Path:
    return Path(night.outcomes[CCD].reduction.product)


@pytest.fixture(scope="module")
def other(night: Night, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The same CCD with SIP, both tables, and floats."""
    products = tmp_path_factory.mktemp("other") / "products"
    return calibrated(night, products, wcs="sip", catalogue="both", pixels="float")


@pytest.fixture(scope="module")
def product(other: Outcome) -> Path:
    return Path(other.reduction.product)


def corners(path: Path, plane: str) -> np.ndarray:
    with warnings.catch_warnings(), fits.open(path) as hdus:
        warnings.simplefilter("ignore")
        x, y = np.meshgrid(np.linspace(0, 2047, 9), np.linspace(0, 4095, 17))
        return np.stack(WCS(hdus[plane].header).all_pix2world(x.ravel(), y.ravel(), 0))


@pytest.mark.parametrize("plane", PLANES)
def test_sip_and_tpv_are_the_same_sky_in_every_plane(
    plane: str, usual: Path, product: Path
) -> None:
    header = fits.getheader(product, plane)
    assert header["CTYPE1"] == "RA---TAN-SIP"
    assert not [key for key in header if key.startswith("PV")]
    apart = corners(product, plane) - corners(usual, plane)
    assert 3.6e6 * np.hypot(*apart).max() <= header["SIPDEV"] < 1.0


def test_floats_keep_what_steps_round(usual: Path, product: Path) -> None:
    for plane in ("IMAGE", "WEIGHT"):
        exact, stepped = fitsio.read(product, ext=plane), fitsio.read(usual, ext=plane)
        assert exact.dtype == np.float32
        assert len(np.unique(exact)) > 2 * len(np.unique(stepped))
    np.testing.assert_array_equal(fitsio.read(product, ext="MASK"), fitsio.read(usual, ext="MASK"))
    noise = 1.0 / np.sqrt(np.median(fitsio.read(usual, ext="WEIGHT")))
    difference = fitsio.read(product, ext="IMAGE") - fitsio.read(usual, ext="IMAGE")
    # Evenly spread over a step of an eighth of the noise.
    assert difference.std() == pytest.approx(noise / 8 / np.sqrt(12), rel=0.1)


@pytest.mark.parametrize("plane", PLANES)
def test_all_readers_see_floats_to_the_last_bit(
    plane: str, tmp_path: Path, funpack_program: str
) -> None:
    rng = np.random.default_rng(1)
    pixels = {
        "IMAGE": rng.normal(900, 12, (60, 210)).astype(np.float32),
        "MASK": rng.integers(0, 128, (60, 210), np.uint8),
        "WEIGHT": rng.exponential(1e-3, (60, 210)).astype(np.float32),
    }
    path, unpacked = tmp_path / "ccd.fits.fz", tmp_path / "unpacked.fits"
    write_image(path, (), (), {name: Plane(values) for name, values in pixels.items()}, [])
    subprocess.run([funpack_program, "-O", unpacked, path], check=True)
    np.testing.assert_array_equal(fitsio.read(path, ext=plane), pixels[plane])
    for readable in (path, unpacked):
        np.testing.assert_array_equal(fits.getdata(readable, plane), pixels[plane])


@pytest.mark.parametrize("which", ["usual", "product"])
def test_every_hdu_has_checksums_and_they_are_right(
    which: str, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(which)
    table = path.with_name(path.name.replace(".fits.fz", ".cat.fits"))
    for file, count in ((path, 4), (table, 2)):
        sums = verify_checksums(file)
        assert [(hdu.data, hdu.hdu) for hdu in sums] == [(True, True)] * count
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with fits.open(file, checksum=True, disable_image_compression=True) as hdus:
                assert all({"CHECKSUM", "DATASUM"} <= set(hdu.header) for hdu in hdus)


@pytest.mark.parametrize("which", ["usual", "product"])
def test_fitsverify_finds_nothing_to_say(
    which: str, request: pytest.FixtureRequest, fitsverify_program: str
) -> None:
    path = request.getfixturevalue(which)
    for file in (path, path.with_name(path.name.replace(".fits.fz", ".cat.fits"))):
        done = subprocess.run(
            [fitsverify_program, "-q", file], capture_output=True, text=True, check=False
        )
        assert done.stdout.startswith("verification OK"), done.stdout


def test_both_tables_say_the_same(other: Outcome, product: Path) -> None:
    stem = product.name.removesuffix(".fits.fz")
    table, header = fitsio.read(product.with_name(f"{stem}.cat.fits"), "SOURCES", header=True)
    columns = parquet.read_table(product.with_name(f"{stem}.cat.parquet"))
    assert columns.column_names == list(table.dtype.names)
    assert len(table) == other.reduction.n_sources
    for name in columns.column_names:
        values = columns[name].to_numpy()
        assert values.dtype == table[name].dtype.newbyteorder("=")
        np.testing.assert_array_equal(values, table[name])
        unit = (columns.schema.field(name).metadata or {}).get(b"unit", b"").decode()
        assert unit == str(header.get(f"TUNIT{columns.column_names.index(name) + 1}", ""))
    told = {key.decode(): value.decode() for key, value in columns.schema.metadata.items()}
    for key in ("EXPNUM", "SEEING", "ZEROPNT"):
        assert float(told[key]) == pytest.approx(header[key], rel=1e-14)
    assert told["OBJECT"] == header["OBJECT"].strip()
    assert told["DATE-OBS"] == header["DATE-OBS"]


def test_astropy_and_pandas_read_parquet_with_units_and_cards(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    write_catalogues(tmp_path / "ccd.fits.fz", "parquet", COLUMNS, CARDS)
    path = tmp_path / "ccd.cat.parquet"
    table = Table.read(path)
    assert {name: str(table[name].unit or "") for name in table.colnames} == {
        "X": "pix", "FLUX": "electron", "FLAGS": "", "MATCHED": "",
    }  # fmt: skip
    assert dict(table.meta) == {key: value for key, value, _ in CARDS}
    assert list(pandas.read_parquet(path)["FLAGS"]) == [0, 3]


@pytest.mark.parametrize("form", ["fits", "parquet", "both"])
def test_a_table_comes_back_in_whatever_form_it_lies_there(tmp_path: Path, form: str) -> None:
    write_catalogues(tmp_path / "ccd.fits.fz", form, COLUMNS, CARDS)
    rows, cards = read_catalogue(tmp_path / "ccd.fits.fz")
    for key, value, _ in CARDS:
        assert cards[key] == value
    for name, (values, _) in COLUMNS.items():
        np.testing.assert_array_equal(rows[name], values)


def test_a_table_of_another_form_does_not_outlive_a_new_one(tmp_path: Path) -> None:
    for form, left in (("both", 2), ("parquet", 1), ("fits", 1)):
        write_catalogues(tmp_path / "ccd.fits.fz", form, COLUMNS, CARDS)
        assert len(list(tmp_path.iterdir())) == left


@pytest.mark.parametrize("damage", ["absent", "cut"])
@pytest.mark.parametrize("form", ["fits", "parquet"])
def test_a_table_that_cannot_be_read_is_one_clear_error(
    tmp_path: Path, form: str, damage: str
) -> None:
    write_catalogues(tmp_path / "ccd.fits.fz", form, COLUMNS, CARDS)
    (table,) = tmp_path.iterdir()
    if damage == "absent":
        table.unlink()
    else:
        table.write_bytes(table.read_bytes()[:400])
    with pytest.raises(FitsError, match=r"ccd\.fits\.fz: its source table"):
        read_catalogue(tmp_path / "ccd.fits.fz")


def test_without_its_table_no_image_appears(
    night: Night, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(catalogue.parquet, "write_table", full)
    with pytest.raises(StorageError, match="free some space"):
        calibrated(night, tmp_path / "products", catalogue="both")
    left = [path.name for path in (tmp_path / "products").rglob("*") if path.is_file()]
    assert [name.partition("_28")[2] for name in left] == [".cat.fits"]


def test_a_product_in_parquet_alone_names_its_table(night: Night, tmp_path: Path) -> None:
    found = calibrated(night, tmp_path / "products", catalogue="parquet").reduction
    assert found.catalogue.endswith(f"_{CCD}.cat.parquet")
    assert Path(found.catalogue).is_file()
    assert not Path(found.catalogue.replace(".parquet", ".fits")).exists()


def test_a_product_in_other_words_is_the_product_written_so(
    usual: Path, product: Path, tmp_path: Path
) -> None:
    sip = convert_wcs(usual, tmp_path / "sip", "sip")
    assert sip.name == usual.name
    np.testing.assert_array_equal(corners(sip, "IMAGE"), corners(product, "IMAGE"))
    assert all(found.hdu and found.data for found in verify_checksums(sip))
    table = usual.name.replace(".fits.fz", ".cat.fits")
    assert (sip.parent / table).read_bytes() == (usual.parent / table).read_bytes()
    again = convert_wcs(sip, tmp_path / "tpv", "tpv")
    for plane in PLANES:
        header = fits.getheader(again, plane)
        assert header["CTYPE2"] == "DEC--TPV"
        assert "SIPDEV" not in header
        assert 3.6e6 * np.hypot(*(corners(again, plane) - corners(usual, plane))).max() < 1.0
        np.testing.assert_array_equal(fitsio.read(again, ext=plane), fitsio.read(usual, ext=plane))
    kept = fits.getheader(again, "IMAGE")
    for key, value in fits.getheader(usual, "IMAGE").items():
        if not key.startswith(("C", "PV", "DATASUM", "COMMENT")):
            assert kept[key] == value, key


def test_what_cannot_be_told_in_other_words_is_refused(usual: Path, tmp_path: Path) -> None:
    with pytest.raises(FitsError, match="another directory"):
        convert_wcs(usual, usual.parent, "sip")
    blank = tmp_path / "blank.fits.fz"
    planes = {"IMAGE": Plane(np.zeros((8, 8), np.float32))}
    for cards, told in (([], "no calibrated CCD"), ([("PREPIPE", "1.0", "")], "no WCS")):
        write_image(blank, (), (), planes, cards)
        with pytest.raises(InputError, match=told):
            convert_wcs(blank, tmp_path / "out", "sip")
    assert not (tmp_path / "out").exists()

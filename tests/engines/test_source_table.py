"""The source table: what was put into it is what every FITS reader finds."""

from __future__ import annotations

from pathlib import Path

import fitsio
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from prepipe.codec.checksums import verify_checksums
from prepipe.engines.builtin.table import write_table
from prepipe.errors import PixelError

ROWS = 1234


def columns(rows: int = ROWS) -> dict[str, tuple[np.ndarray, str]]:
    rng = np.random.default_rng(4)
    faint = rng.normal(0.0, 1e5, rows).astype(np.float32)
    faint[::7] = np.nan
    return {
        "X": (rng.uniform(0, 2048, rows), "pixel"),
        "MAG": (faint, "mag"),
        "FLAGS": (rng.integers(-(2**31), 2**31, rows).astype(np.int32), ""),
        "NUMBER": (rng.integers(-(2**63), 2**63 - 1, rows), ""),
        "SHORT": (rng.integers(-(2**15), 2**15, rows).astype(np.int16), ""),
        "MATCHED": (rng.random(rows) < 0.5, ""),
    }


@pytest.mark.parametrize("rows", [0, 1, ROWS])
def test_astropy_and_fitsio_read_every_column_as_it_was(tmp_path: Path, rows: int) -> None:
    path, written = tmp_path / "sources.fits", columns(rows)
    write_table(path, written, [])
    by_astropy, by_fitsio = Table.read(path, hdu="SOURCES"), fitsio.FITS(str(path))["SOURCES"]
    assert by_astropy.colnames == list(written) == by_fitsio.get_colnames()
    for name, (values, unit) in written.items():
        found = np.ma.filled(by_astropy[name].data, np.nan) if name == "MAG" else by_astropy[name]
        np.testing.assert_array_equal(found, values)
        assert found.dtype.newbyteorder("=") == values.dtype
        assert (by_astropy[name].unit or "") == unit
        if rows:
            np.testing.assert_array_equal(by_fitsio[name][:], values)


def test_cards_keep_their_values_and_what_is_not_finite_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "sources.fits"
    cards = [
        ("EXPTIME", 20.123456789012345, "[s]"),
        ("OBJECT", "O'Neill's field", ""),
        ("WCSOK", np.bool_(False), ""),
        ("SEEING", float("nan"), ""),
    ]
    write_table(path, columns(), cards)
    header = fits.getheader(path, "SOURCES")
    assert header["EXPTIME"] == 20.123456789012345
    assert header["OBJECT"] == "O'Neill's field"
    assert header["WCSOK"] is False
    assert "SEEING" not in header


def test_the_checksums_of_a_table_are_right(tmp_path: Path) -> None:
    path = tmp_path / "sources.fits"
    write_table(path, columns(), [])
    (_, table) = verify_checksums(path)
    assert table.data
    assert table.hdu


def test_a_column_that_no_table_holds_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(PixelError, match="column Z is complex128"):
        write_table(tmp_path / "sources.fits", {"Z": (np.ones(3, complex), "")}, [])
    assert not list(tmp_path.iterdir())

"""The table of pipeview.pl is read by the names of its columns, whatever is around it."""

from __future__ import annotations

import pytest

from prepipe.engines.photpipe.view import east_north, ra_dec_shift, read_wcs_table
from prepipe.errors import ConfigError, EngineError
from prepipe.model import PointingHint

HEADER = (
    "FILENAME                            WCSFLAG NASTRO EWCSXAS EWCSYAS WCSRASH0 WCSDESH0 WCSRASH "
    "WCSDECSH WCSRAD   WCSRADEC       WCSCAT WCSDB"
)
GOOD = (
    "e5_a.i.ut130301.055628_1                  1    391   0.146   0.147    -77.4      8.2   -77.4 "
    "     8.2     40       NONE   WEB2MASS_J 2012-10-02.ec0915.i.ut121123.027739.1.db "
)
SOFT = (
    "e2_a.g.ut130301.055378_1                  0     66   0.174   0.253    -35.6     34.4   -35.6 "
    "    34.4     40       NONE   WEB2MASS_J 2012-10-02.ec0915.i.ut121123.027739.1.db "
)
HARD = (
    "e5_a.g.ut130301.055626_1                  0      0   0.000   0.000      0.0      0.0     0.0 "
    "     0.0      0       NONE   WEB2MASS_J 2012-10-02.ec0915.i.ut121123.027739.1.db "
)
TABLE = "\n".join([HEADER, SOFT, HARD, GOOD])


def test_a_good_row_tells_stars_residuals_and_shift():
    row = read_wcs_table(TABLE, "e5_a.i.ut130301.055628_1")
    assert (row.flag, row.stars) == (1, 391)
    assert row.rms_arcsec == (0.146, 0.147)
    assert row.shift_arcsec == (-77.4, 8.2)
    assert row.solved
    assert row.flags == ()


def test_a_flag_of_0_with_stars_is_a_soft_failure():
    row = read_wcs_table(TABLE, "e2_a.g.ut130301.055378_1")
    assert not row.solved
    assert row.flags == ("NO_WCS", "POOR_WCS")


def test_no_star_is_a_hard_failure():
    row = read_wcs_table(TABLE, "e5_a.g.ut130301.055626_1")
    assert row.flags == ("NO_WCS", "NO_WCS_STARS")


def test_banners_warnings_and_empty_lines_are_passed_over():
    text = "\n".join(
        ["photpipe v20.0", "=" * 60, "", "IMAGE WCSFLAG of ut130301", TABLE, "Warning: old cfg"]
    )
    assert read_wcs_table(text, "e5_a.i.ut130301.055628_1").stars == 391


def test_other_columns_and_another_order_do_not_matter():
    header = "NEW WCSDESH0 NASTRO WCSFLAG EWCSYAS FILENAME EWCSXAS WCSRASH0 MORE"
    line = "x 8.2 391 1 0.147 e5_a.i.ut130301.055628_1.fits 0.146 -77.4 y z"
    row = read_wcs_table(f"{header}\n{line}\n", "e5_a.i.ut130301.055628_1")
    assert row == read_wcs_table(TABLE, "e5_a.i.ut130301.055628_1")


def test_a_file_name_may_have_its_directory_and_its_end():
    line = GOOD.replace("e5_a.i.ut130301.055628_1 ", "/data/w/e5_a.i.ut130301.055628_1.fits ")
    assert read_wcs_table(f"{HEADER}\n{line}", "e5_a.i.ut130301.055628_1").solved


def test_the_last_line_of_an_image_counts():
    worse = SOFT.replace("e2_a.g.ut130301.055378_1", "e5_a.i.ut130301.055628_1")
    assert read_wcs_table(f"{HEADER}\n{worse}\n{GOOD}", "e5_a.i.ut130301.055628_1").solved
    assert not read_wcs_table(f"{HEADER}\n{GOOD}\n{worse}", "e5_a.i.ut130301.055628_1").solved


def test_an_image_whose_name_begins_the_same_is_another():
    with pytest.raises(EngineError, match=r"tells nothing of e5_a.i.ut130301.055628_"):
        read_wcs_table(TABLE, "e5_a.i.ut130301.055628_")


def test_a_missing_column_is_named():
    with pytest.raises(ConfigError, match=r"has no column EWCSYAS, WCSDESH0, only FILENAME, WCSF"):
        read_wcs_table(TABLE.replace("EWCSYAS ", "").replace("WCSDESH0", "WCSDEC"), "x")


def test_something_that_is_no_table_is_an_error_of_this_ccd_for_the_time_being():
    with pytest.raises(EngineError, match="no table with the columns FILENAME and WCSFLAG"):
        read_wcs_table("usage: pipeview.pl ...\n", "x")


@pytest.mark.parametrize("line", ["x 1 many 0.1 0.1 1 1", "x 1 20 0.1"])
def test_a_line_that_makes_no_sense_is_an_error_that_shows_it(line):
    with pytest.raises(EngineError, match=f"the line of x makes no sense .*: {line}"):
        read_wcs_table(f"{HEADER}\n{line}\n", "x")


@pytest.mark.parametrize(
    ("shift", "told"),
    [((-49.3, 29.0), "-49.3,29"), ((12.34567, -0.0001), "12.346,0"), ((0.0, 1234.5), "0,1234.5")],
)
def test_a_shift_goes_back_to_photpipe_as_it_came(shift, told):
    assert ra_dec_shift(PointingHint("any", *east_north(shift))) == told

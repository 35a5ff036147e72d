"""From raw files to exposures and CCDs in the journal."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from astropy.io import fits
from tiny_raw import FOCUS_CCD, raw_bytes, write_raw

from prepipe.cameras import load_camera
from prepipe.errors import DuplicateError, FitsError, HeaderError, StorageError
from prepipe.model import Kind, Stage
from prepipe.store import Journal
from prepipe.telescope.intake import ccd_spans, read_exposure, register
from prepipe.telescope.watch import Arrival

CAMERA = load_camera("decam")


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal(tmp_path / "journal.sqlite")
    yield opened
    opened.close()


def arrival(path: Path) -> Arrival:
    status = path.stat()
    return Arrival(path, status.st_size, status.st_mtime_ns)


def test_ccds_are_known_by_their_number_and_focus_chips_left_out(tmp_path: Path) -> None:
    path = write_raw(tmp_path, 7, (62, FOCUS_CCD, 3, 25))
    raw = read_exposure(path, CAMERA)
    assert raw.exposure is not None
    assert (raw.exposure.number, raw.exposure.kind, raw.exposure.band) == (7, Kind.OBJECT, "g")
    assert [ccd.number for ccd in raw.ccds] == [62, 3, 25]


def test_the_extension_of_each_ccd_is_found(tmp_path: Path) -> None:
    path = write_raw(tmp_path, 7, (62, FOCUS_CCD, 3))
    assert {ccd: span.index for ccd, span in ccd_spans(path, CAMERA).items()} == {62: 1, 3: 3}


def test_a_card_of_the_extension_counts_before_that_of_the_primary_header(tmp_path: Path) -> None:
    path = write_raw(tmp_path, 7, (1,), ccd_cards={"EXPTIME": 30.0})
    raw = read_exposure(path, CAMERA)
    assert raw.exposure is not None
    assert raw.exposure.exposure_s == 30.0


def test_an_exposure_and_its_ccds_are_written_into_the_journal(
    tmp_path: Path, journal: Journal
) -> None:
    path = write_raw(tmp_path, 7)
    _, fresh = register(arrival(path), CAMERA, journal)
    assert [key.ccd for key in fresh] == [25, 1, 44]
    assert all(row.raw == path for row in journal.rows(Stage.FOUND))
    status = path.stat()
    assert journal.known_file(path, status.st_size, status.st_mtime_ns)


def test_registering_twice_changes_nothing(tmp_path: Path, journal: Journal) -> None:
    path = write_raw(tmp_path, 7)
    register(arrival(path), CAMERA, journal)
    assert register(arrival(path), CAMERA, journal)[1] == []
    assert len(journal.rows()) == 3


def test_a_second_file_of_the_same_number_with_other_content_is_refused(
    tmp_path: Path, journal: Journal
) -> None:
    first = write_raw(tmp_path, 7)
    second = tmp_path / "other.fits.fz"
    second.write_bytes(raw_bytes(7, seed=1))
    register(arrival(first), CAMERA, journal)
    with pytest.raises(DuplicateError, match="already known from"):
        register(arrival(second), CAMERA, journal)
    assert {row.raw for row in journal.rows()} == {first}


def test_a_copy_of_a_known_file_is_no_fault(tmp_path: Path, journal: Journal) -> None:
    first = write_raw(tmp_path, 7)
    second = tmp_path / "copy.fits.fz"
    shutil.copy(first, second)
    register(arrival(first), CAMERA, journal)
    assert register(arrival(second), CAMERA, journal)[1] == []


def test_a_file_that_was_moved_is_read_at_its_new_place(tmp_path: Path, journal: Journal) -> None:
    first = write_raw(tmp_path, 7)
    register(arrival(first), CAMERA, journal)
    moved = first.rename(tmp_path / "moved.fits.fz")
    register(arrival(moved), CAMERA, journal)
    assert {row.raw for row in journal.rows(Stage.FOUND)} == {moved}


def test_a_rewritten_file_makes_its_ccds_wait_again(tmp_path: Path, journal: Journal) -> None:
    path = write_raw(tmp_path, 7, (1, 2))
    for key in register(arrival(path), CAMERA, journal)[1]:
        journal.advance(key, Stage.SENT)
    path.write_bytes(raw_bytes(7, (1, 2, 3), seed=1))
    _, fresh = register(arrival(path), CAMERA, journal)
    assert sorted(key.ccd for key in fresh) == [1, 2, 3]
    assert len(journal.rows(Stage.FOUND)) == 3


@pytest.mark.parametrize(
    ("content", "error", "reason"),
    [
        (raw_bytes(7, (1, 2, 1)), FitsError, "CCD 1 is in it twice"),
        (raw_bytes(7, (FOCUS_CCD,)), FitsError, "holds no science CCD"),
        (raw_bytes(7, ccd_cards={"CCDNUM": "NaN"}), HeaderError, "CCDNUM"),
        (raw_bytes(7, ccd_cards={"CCDNUM": "many"}), HeaderError, "CCDNUM"),
        (raw_bytes(7, cards={"EXPNUM": "NaN"}), HeaderError, "EXPNUM"),
        (raw_bytes(7, cards={"EXPTIME": "NaN"}), HeaderError, "EXPTIME"),
        (raw_bytes(7, cards={"DATE-OBS": "NaN"}), HeaderError, "not a date"),
        (raw_bytes(7, cards={"DATE-OBS": ""}), HeaderError, "DATE-OBS"),
    ],
    ids=[
        "CCD twice",
        "focus chips only",
        "CCDNUM NaN",
        "CCDNUM text",
        "EXPNUM NaN",
        "EXPTIME NaN",
        "DATE-OBS NaN",
        "DATE-OBS empty",
    ],
)
def test_bad_headers_are_refused_with_file_and_reason(
    tmp_path: Path, journal: Journal, content: bytes, error: type[Exception], reason: str
) -> None:
    path = tmp_path / "bad.fits.fz"
    path.write_bytes(content)
    with pytest.raises(error, match=f"bad.fits.fz: .*{reason}"):
        register(arrival(path), CAMERA, journal)
    assert journal.rows() == []


def test_a_file_without_ccdnum_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.fits"
    fits.HDUList(
        [fits.PrimaryHDU.fromstring(raw_bytes(7)[:2880]), fits.ImageHDU([[1, 2], [3, 4]])]
    ).writeto(path)
    with pytest.raises(HeaderError, match="CCDNUM is missing"):
        read_exposure(path, CAMERA)


def test_a_file_of_tables_holds_nothing_to_calibrate(tmp_path: Path, journal: Journal) -> None:
    path = tmp_path / "truth.fits"
    table = fits.BinTableHDU.from_columns([fits.Column("ra", "D", array=[1.0])])
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(path)
    raw, fresh = register(arrival(path), CAMERA, journal)
    assert (raw.exposure, fresh) == (None, [])
    assert journal.known_files().keys() == {str(path)}


def test_a_file_that_changes_while_it_is_read_is_not_registered(
    tmp_path: Path, journal: Journal
) -> None:
    path = write_raw(tmp_path, 7)
    seen = arrival(path)
    path.write_bytes(raw_bytes(7, seed=1))
    with pytest.raises(StorageError, match="rewritten"):
        register(seen, CAMERA, journal)
    assert journal.rows() == []


def test_all_62_science_ccds_of_a_real_file_are_found(shared_data: Path) -> None:
    path = shared_data / "decam_raw" / "cutout_c4d_200306_000415_ori.fits.fz"
    raw = read_exposure(path, CAMERA)
    assert raw.exposure is not None
    assert raw.exposure.name == "decam_00941420"
    assert sorted(ccd.number for ccd in raw.ccds) == list(range(1, 63))

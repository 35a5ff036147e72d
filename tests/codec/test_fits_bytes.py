"""The anatomy of FITS files: sound ones are described, broken ones refused with a reason."""

from __future__ import annotations

import gzip
import io
import os
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prepipe.codec.cards import card_value, make_card, replace_value
from prepipe.codec.checksums import verify_checksums
from prepipe.codec.fits_bytes import FitsFile, scan_fits
from prepipe.codec.tiles import image_dtype
from prepipe.errors import FitsError, StorageError

DECAM = ("cutout_c4d_200306_000415_ori.fits.fz", "history_reduced_c4d_200306_000415_ori.fits.fz")
fuzz = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


class Content(bytes):
    """Bytes that do not fill the screen when a test fails."""

    def __repr__(self) -> str:
        return f"<{len(self)} bytes>"


@pytest.fixture(scope="module")
def sound() -> Content:
    """A file of an empty primary HDU, a small image and a compressed one."""
    rng = np.random.default_rng(2)
    pixels = rng.normal(1000, 5, (20, 30)).astype(np.uint16)
    stream = io.BytesIO()
    fits.HDUList(
        [fits.PrimaryHDU(), fits.ImageHDU(pixels), fits.CompImageHDU(pixels.astype(np.int16))]
    ).writeto(stream, checksum=True)
    return Content(stream.getvalue())


def write(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "file.fits"
    path.write_bytes(content)
    return path


def card_replaced(content: bytes, hdu: int, keyword: str, text: str) -> bytes:
    """Overwrite the first card of `keyword` after the start of HDU number `hdu`."""
    start = 0 if hdu == 0 else content.index(b"XTENSION")
    at = content.index(keyword.ljust(8).encode() + b"=", start)
    card = f"{keyword:<8}= {text:>20}".ljust(80).encode()
    return content[:at] + card + content[at + 80 :]


@pytest.mark.parametrize("name", DECAM)
def test_every_hdu_of_a_real_exposure_is_found_where_astropy_finds_it(
    shared_data: Path, name: str
) -> None:
    path = shared_data / "decam_raw" / name
    spans = scan_fits(path)
    with fits.open(path, disable_image_compression=True) as hdus:
        assert len(spans) == len(hdus)
        for span, hdu in zip(spans, hdus, strict=True):
            told = hdu.fileinfo()
            assert (span.header_offset, span.data_offset) == (told["hdrLoc"], told["datLoc"])
            assert span.unit_bytes == told["datSpan"]
    assert spans[-1].end == path.stat().st_size


def test_a_span_tells_ccd_number_shape_and_type_without_reading_pixels(shared_data: Path) -> None:
    spans = scan_fits(shared_data / "decam_raw" / DECAM[1])
    numbers = [span.value("CCDNUM") for span in spans[1:]]
    assert len(set(numbers)) == 9
    assert {span.image_shape for span in spans[1:]} == {(400, 287)}
    assert {image_dtype(span) for span in spans[1:]} == {"uint16"}
    assert spans[0].image_shape == ()


def test_a_gzip_compressed_frame_is_described_as_the_plain_one(shared_data: Path) -> None:
    (span,) = scan_fits(shared_data / "sdss" / "fpC-004192-g4-0300.fit.gz")
    assert span.image_shape == (1489, 2048)
    assert image_dtype(span) == "uint16"


def test_checksums_of_a_file_written_with_them_fit(sound: bytes, tmp_path: Path) -> None:
    sums = verify_checksums(write(tmp_path, sound))
    assert [(one.data, one.hdu) for one in sums] == [(True, True)] * 3


def test_a_changed_pixel_shows_in_the_checksums(sound: bytes, tmp_path: Path) -> None:
    path = write(tmp_path, sound)
    span = scan_fits(path)[1]
    changed = bytearray(sound)
    changed[span.data_offset + 7] ^= 1
    sums = verify_checksums(write(tmp_path, bytes(changed)))
    assert (sums[1].data, sums[1].hdu) == (False, False)
    assert sums[2].data is True


def test_stale_checksums_of_archive_cutouts_are_told_and_not_refused(shared_data: Path) -> None:
    sums = verify_checksums(shared_data / "decam_raw" / DECAM[0])
    assert sums[0].data is True
    assert not any(one.data for one in sums[1:])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"hello", "no FITS file"),
        (bytes(5760), "no FITS file"),
        (b"\x1f\x8b" + bytes(100), "gzip stream is broken"),
        (b"SIMPLE  =                    T".ljust(2880), "inside its header"),
    ],
)
def test_what_is_no_fits_file_is_refused_with_its_reason(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    with pytest.raises(FitsError, match=reason):
        scan_fits(write(tmp_path, content))


@pytest.mark.parametrize(
    ("keyword", "text"),
    [
        ("NAXIS", "-1"),
        ("NAXIS", "100000"),
        ("NAXIS", "7"),
        ("NAXIS1", "-30"),
        ("NAXIS1", "9999999999999999"),
        ("NAXIS1", "99999999999999999999999"),
        ("NAXIS2", "3.5"),
        ("NAXIS2", "'20'"),
        ("BITPIX", "17"),
        ("BITPIX", "T"),
        ("PCOUNT", "-2880"),
        ("PCOUNT", "1000000000000"),
        ("GCOUNT", "-1"),
    ],
)
def test_a_header_that_contradicts_itself_is_refused(
    sound: bytes, tmp_path: Path, keyword: str, text: str
) -> None:
    with pytest.raises(FitsError):
        scan_fits(write(tmp_path, card_replaced(sound, 1, keyword, text)))


@fuzz
@given(st.data())
def test_a_file_cut_anywhere_is_called_truncated(
    sound: bytes, tmp_path: Path, data: st.DataObject
) -> None:
    whole = [span.end for span in scan_fits(write(tmp_path, sound))]
    cut = data.draw(st.integers(0, len(sound) - 1).filter(lambda length: length not in whole))
    with pytest.raises(FitsError):
        scan_fits(write(tmp_path, sound[:cut]))


@pytest.mark.parametrize("extra", [1, 80, 2880, 5760])
def test_bytes_after_the_last_hdu_are_counted(sound: bytes, tmp_path: Path, extra: int) -> None:
    with pytest.raises(FitsError, match=f"{extra} bytes after HDU 2"):
        scan_fits(write(tmp_path, sound + bytes(extra)))


@fuzz
@given(st.data())
def test_a_fuzzed_header_gives_a_description_or_a_fits_error(
    sound: bytes, tmp_path: Path, data: st.DataObject
) -> None:
    fuzzed = bytearray(sound)
    for _ in range(data.draw(st.integers(1, 8))):
        position = data.draw(st.integers(0, len(sound) - 1))
        fuzzed[position] = data.draw(st.integers(0, 255))
    try:
        spans = scan_fits(write(tmp_path, bytes(fuzzed)))
    except FitsError:
        return
    assert spans[-1].end == len(sound)


def test_a_header_without_end_is_given_up_after_a_bounded_read(tmp_path: Path) -> None:
    comments = b"COMMENT".ljust(80) * (5_000_000 // 80)
    content = make_card("SIMPLE", True) + comments
    with pytest.raises(FitsError, match="no END card within"):
        scan_fits(write(tmp_path, content))


def test_a_bomb_of_tiny_hdus_is_given_up(tmp_path: Path, sound: bytes) -> None:
    tiny = fits.ImageHDU().header.tostring().encode()
    primary = sound[: scan_fits(write(tmp_path, sound))[0].end]
    with pytest.raises(FitsError, match="more than 2000 HDUs"):
        scan_fits(write(tmp_path, primary + tiny * 2500))


def test_a_gzip_bomb_is_given_up(tmp_path: Path) -> None:
    bomb = gzip.compress(bytes(300 << 20), 1)
    with pytest.raises(FitsError, match="gunzip it first"):
        scan_fits(write(tmp_path, bomb))


def test_a_named_pipe_does_not_hang_the_reader(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.fits"
    os.mkfifo(pipe)
    with pytest.raises(FitsError, match="no regular file"):
        scan_fits(pipe)


def test_a_file_that_vanished_is_worth_another_try(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="vanished"):
        scan_fits(tmp_path / "gone.fits")


def test_a_file_that_shrinks_while_read_is_refused_and_does_not_crash(
    sound: bytes, tmp_path: Path
) -> None:
    path = write(tmp_path, sound)
    with FitsFile(path) as file:
        spans = file.spans
        os.truncate(path, spans[2].data_offset + 10)
        with pytest.raises(FitsError, match="became shorter"):
            file.data_unit(spans[2])


@given(st.one_of(st.integers(-(10**17), 10**17), st.booleans(), st.text("abc '/=", max_size=60)))
def test_a_card_gives_back_its_value(value: int | bool | str) -> None:
    expected = value.rstrip() if isinstance(value, str) else value
    if isinstance(value, str) and len(value.replace("'", "''")) > 67:
        return
    card = make_card("KEY", value, "what it means")
    assert len(card) == 80
    assert card_value(card) == expected


def test_another_value_leaves_the_comment_of_its_card_in_place() -> None:
    card = make_card("PCOUNT", 11451, "size of special data area")
    assert replace_value(card, 7) == make_card("PCOUNT", 7, "size of special data area")
    text = make_card("TFORM1", "1PB(118)", "a / b")
    assert replace_value(text, "1PB(2)") == make_card("TFORM1", "1PB(2)", "a / b")

"""The Rice kernels: the bytes of cfitsio, every pixel back, no harm from any stream of bytes."""

from __future__ import annotations

import ctypes
import io
import mmap
from pathlib import Path

import fitsio
import imagecodecs
import numpy as np
import pytest
from astropy.io import fits
from codec_frames import simulated_frame
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from prepipe.codec.base import Unit
from prepipe.codec.cards import join_cards, split_cards
from prepipe.codec.checksums import fits_sum
from prepipe.codec.fits_bytes import FitsFile
from prepipe.codec.headers import with_cards
from prepipe.codec.rice_bits import ones_complement_sum
from prepipe.codec.rice_decoder import TILE_LONGER, TILE_SHORTER, TILE_SOUND, decode_tiles
from prepipe.codec.rice_encoder import LARGEST_STEP, encode_quantised, encode_tiles
from prepipe.codec.rice_image import compile_kernels, compressed_image
from prepipe.codec.tiles import decode_rows, decode_unit
from prepipe.errors import FitsError

STORED = ("uint8", "int16", "int32")
REAL = ("history_reduced_c4d_200306_000415_ori.fits.fz", "cutout_c4d_200306_000415_ori.fits.fz")
PAGE = mmap.PAGESIZE
NO_ACCESS = 0

Image = NDArray[np.generic]


def frame_of(kind: str, dtype: str) -> Image:
    """Pictures that take every way through the kernels; 333 columns end in a partial block."""
    rng = np.random.default_rng(7)
    limits = np.iinfo(dtype)
    shape = (9, 333)
    if kind == "constant":
        pixels = np.full(shape, limits.max)
    elif kind == "all different":
        pixels = rng.integers(limits.min, limits.max, shape, endpoint=True)
    elif kind == "extremes":
        pixels = rng.choice([limits.min, limits.max], shape)
    elif kind == "sparse extremes":
        pixels = np.where(rng.random(shape) < 0.01, limits.max, limits.min)
    else:
        pixels = np.rint(rng.normal(100, 6, shape))
    if kind == "equal rows":
        # each twice or more, as in a mask, and one that is equal to none
        pixels = pixels[[0, 0, 0, 1, 2, 2, 0, 0, 8]]
    return pixels.astype(dtype)


KINDS = ("equal rows", "constant", "all different", "extremes", "sparse extremes", "noise")


def decoded(
    heap: NDArray[np.uint8], lengths: NDArray[np.int64], like: Image, block: int = 32
) -> Image:
    out = np.empty_like(like)
    state = decode_tiles(heap, lengths, np.cumsum(lengths) - lengths, out, block)
    assert (state == TILE_SOUND).all()
    return out


def cfitsio_tiles(pixels: Image, block: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Tiles by cfitsio's own code, as imagecodecs carries it."""
    tiles = [imagecodecs.rcomp_encode(row, nblock=block) for row in pixels]
    heap = np.frombuffer(b"".join(tiles), np.uint8)
    return heap, np.array([len(tile) for tile in tiles], np.int64)


def images() -> st.SearchStrategy[Image]:
    shapes = arrays.array_shapes(min_dims=2, max_dims=2, max_side=80)
    return st.sampled_from(STORED).flatmap(lambda dtype: arrays.arrays(dtype, shapes))


@settings(max_examples=150, deadline=None)
@given(images())
def test_the_tiles_are_byte_for_byte_those_of_cfitsio(pixels: Image) -> None:
    heap, lengths = encode_tiles(pixels)
    wanted, wanted_lengths = cfitsio_tiles(pixels, 32)
    np.testing.assert_array_equal(lengths, wanted_lengths)
    assert heap.tobytes() == wanted.tobytes()
    np.testing.assert_array_equal(decoded(heap, lengths, pixels), pixels)


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("kind", KINDS)
def test_frames_of_every_kind_equal_those_of_cfitsio(kind: str, dtype: str) -> None:
    pixels = frame_of(kind, dtype)
    heap, lengths = encode_tiles(pixels)
    assert heap.tobytes() == cfitsio_tiles(pixels, 32)[0].tobytes()
    np.testing.assert_array_equal(decoded(heap, lengths, pixels), pixels)


@pytest.mark.parametrize("block", [1, 16, 32, 64, 1000])
@pytest.mark.parametrize("kind", KINDS)
def test_tiles_with_blocks_of_any_size_are_decoded(kind: str, block: int) -> None:
    pixels = frame_of(kind, "int16")
    heap, lengths = cfitsio_tiles(pixels, block)
    np.testing.assert_array_equal(decoded(heap, lengths, pixels, block), pixels)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7])
def test_any_number_of_rows_is_decoded(rows: int) -> None:
    pixels = frame_of("noise", "int16")[:rows]
    np.testing.assert_array_equal(decoded(*encode_tiles(pixels), pixels), pixels)


def test_an_offset_makes_signed_pixels_unsigned() -> None:
    wanted = simulated_frame(40, 300)
    heap, lengths = encode_tiles((wanted ^ np.uint16(1 << 15)).view(np.int16))
    out = np.empty_like(wanted)
    decode_tiles(heap, lengths, np.cumsum(lengths) - lengths, out, first_offset=1 << 15)
    np.testing.assert_array_equal(out, wanted)


@pytest.mark.parametrize("name", REAL)
def test_every_image_of_a_real_file_is_that_which_fitsio_reads(
    shared_data: Path, name: str
) -> None:
    path = shared_data / "decam_raw" / name
    with FitsFile(path) as file:
        for span in file.spans[1:]:
            pixels = decode_unit(Unit(span.header, file.data_unit(span)))
            theirs = fitsio.read(str(path), ext=span.index)
            assert pixels.dtype == theirs.dtype
            np.testing.assert_array_equal(pixels, theirs)


def written_by_fitsio(path: Path, pixels: Image, **how: object) -> Unit:
    with fitsio.FITS(str(path), "rw", clobber=True) as file:
        file.write(pixels, **how)
        file[-1].write_checksum()
    with FitsFile(path) as file:
        return Unit(file.spans[1].header, file.data_unit(file.spans[1]))


@pytest.mark.parametrize(
    "how",
    [
        {"compress": "RICE"},
        {"compress": "RICE", "tile_dims": (10, 50)},
        {"compress": "RICE", "tile_dims": (1, 150)},
        {"compress": "GZIP_1"},
        {"compress": "GZIP_2"},
        {"compress": "HCOMPRESS", "tile_dims": (20, 300)},
    ],
)
def test_usual_and_unusual_compressions_are_read(how: dict[str, object], tmp_path: Path) -> None:
    pixels = simulated_frame(60, 300)
    found = decode_rows(written_by_fitsio(tmp_path / "frame.fits.fz", pixels, **how))
    np.testing.assert_array_equal(found.pixels, pixels)
    assert found.corrupt.size == 0
    assert found.sum_fits


@pytest.mark.parametrize("method", ["NO_DITHER", "SUBTRACTIVE_DITHER_1", "SUBTRACTIVE_DITHER_2"])
def test_quantised_floats_of_others_are_read(method: str, tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).normal(100, 5, (30, 200)).astype(np.float32)
    path = tmp_path / "float.fits.fz"
    unit = written_by_fitsio(path, pixels, compress="RICE", qlevel=-0.5, qmethod=method)
    # the last digit depends on the order of the operations
    np.testing.assert_allclose(decode_unit(unit), fitsio.read(str(path), ext=1), rtol=2e-7)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=100), st.integers(0, 2**32 - 1))
def test_the_sum_is_that_of_the_standard(content: bytes, start: int) -> None:
    padded = content + bytes(-len(content) % 4)
    found = ones_complement_sum(np.frombuffer(content, np.uint8), np.uint64(start))
    assert int(found) == fits_sum(padded, start)


# Damage ----------------------------------------------------------------------------------


class Fence:
    """A stream that ends where the memory ends: one byte read behind it kills the process."""

    def __init__(self, content: bytes) -> None:
        readable = -(-len(content) // PAGE) * PAGE
        self.memory = mmap.mmap(-1, readable + PAGE)
        whole = np.frombuffer(self.memory, np.uint8)
        forbidden = ctypes.c_void_p(whole.ctypes.data + readable)
        assert ctypes.CDLL(None, use_errno=True).mprotect(forbidden, PAGE, NO_ACCESS) == 0
        self.stream = whole[readable - len(content) : readable]
        self.stream[:] = np.frombuffer(content, np.uint8)


@settings(max_examples=150, deadline=None)
@given(
    st.binary(min_size=1, max_size=400),
    st.sampled_from(STORED),
    st.lists(st.tuples(st.integers(-5, 420), st.integers(-5, 420)), min_size=1, max_size=9),
    st.sampled_from([1, 16, 32, 500]),
)
def test_no_stream_of_bytes_leads_out_of_its_arrays(
    content: bytes, dtype: str, tiles: list[tuple[int, int]], block: int
) -> None:
    fence = Fence(content)
    guarded = np.full((len(tiles) + 2, 150), 77, dtype)
    lengths, offsets = np.array(tiles, np.int64).T.copy()
    state = decode_tiles(fence.stream, lengths, offsets, guarded[1:-1], block)
    inside = (lengths > 0) & (offsets >= 0) & (offsets + lengths <= len(content))
    assert (state[~inside] == TILE_LONGER).all()
    assert (guarded[0] == 77).all() and (guarded[-1] == 77).all()


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(STORED), st.integers(1, 20))
def test_no_damage_to_sound_tiles_leads_out_of_their_heap(
    seed: int, dtype: str, damaged_bytes: int
) -> None:
    pixels = frame_of("noise", dtype)
    heap, lengths = encode_tiles(pixels)
    rng = np.random.default_rng(seed)
    heap[rng.integers(0, heap.size, damaged_bytes)] = rng.integers(0, 256, damaged_bytes)
    fence = Fence(heap.tobytes())
    guarded = np.full((len(pixels) + 2, pixels.shape[1]), 77, dtype)
    decode_tiles(fence.stream, lengths, np.cumsum(lengths) - lengths, guarded[1:-1])
    assert (guarded[0] == 77).all() and (guarded[-1] == 77).all()


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("byte", [0x00, 0x10, 0x55, 0xFF])
def test_a_heap_of_one_byte_repeated_ends_in_corrupt_rows(dtype: str, byte: int) -> None:
    # 0x10 begins a block of ordinary codes, which then is one run of zeros to the heap's end
    fence = Fence(bytes([byte]) * 100_000)
    out = np.empty((5, 3000), dtype)
    lengths = np.full(5, 20_000)
    state = decode_tiles(fence.stream, lengths, np.arange(5) * 20_000, out)
    assert (state != TILE_SOUND).all()


def test_huge_descriptors_do_not_overflow() -> None:
    out = np.empty((3, 10), np.int16)
    huge = np.iinfo(np.int64).max
    lengths = np.array([huge, 1, huge])
    state = decode_tiles(np.zeros(50, np.uint8), lengths, np.array([1, huge, huge]), out)
    assert (state == TILE_LONGER).all()


def test_only_the_rows_of_broken_tiles_are_corrupt() -> None:
    pixels = frame_of("noise", "int16")
    heap, lengths = encode_tiles(pixels)
    offsets = np.cumsum(lengths) - lengths
    broken = heap.copy()
    broken[offsets[2] + 10 : offsets[2] + 40] = 0
    broken[offsets[7] + 10 : offsets[7] + 14] = 0xFF
    out = np.empty_like(pixels)
    state = decode_tiles(broken, lengths, offsets, out)
    assert np.flatnonzero(state != TILE_SOUND).tolist() == [2, 7]
    sound = state == TILE_SOUND
    np.testing.assert_array_equal(out[sound], pixels[sound])


def rice_unit(pixels: Image) -> tuple[bytes, bytearray, NDArray[np.int64]]:
    """Header, data unit and where each tile begins."""
    header, descriptors, heap, padding = compressed_image(pixels, [])
    unit = bytearray(b"".join([descriptors, heap, padding]))
    table = np.frombuffer(descriptors, ">i4").reshape(-1, 2)
    return header, unit, len(descriptors) + table[:, 1].astype(np.int64)


def test_a_corrupt_row_holds_a_copy_of_the_nearest_sound_one() -> None:
    pixels = frame_of("noise", "int16")
    header, unit, begins = rice_unit(pixels)
    for row in (0, 4, 5):
        unit[begins[row] + 10 : begins[row] + 40] = bytes(30)
    found = decode_rows(Unit(header, bytes(unit)))
    assert found.corrupt.tolist() == [0, 4, 5]
    assert found.sum_fits is False
    for row, source in ((0, 1), (4, 3), (5, 6)):
        np.testing.assert_array_equal(found.pixels[row], pixels[source])
    with pytest.raises(FitsError, match="3 rows, the first of them row 0"):
        decode_unit(Unit(header, bytes(unit)))


def test_an_image_without_a_sound_row_is_blank_not_noise() -> None:
    header, unit, begins = rice_unit(frame_of("noise", "int16"))
    unit[: begins[0]] = b"\x7f" * begins[0]
    found = decode_rows(Unit(header, bytes(unit)))
    assert found.corrupt.size == len(found.pixels)
    assert not found.pixels.any()


def test_bytes_left_over_in_a_tile_are_let_pass_only_if_the_sum_vouches_for_them() -> None:
    pixels = frame_of("noise", "int16")
    heap, lengths = cfitsio_tiles(pixels, 32)
    state = decode_tiles(heap, lengths + 1, np.cumsum(lengths) - lengths, np.empty_like(pixels))
    assert (state[:-1] == TILE_SHORTER).all()
    header, unit, _ = rice_unit(pixels)
    np.frombuffer(unit, ">i4", 18).reshape(9, 2)[:8, 0] += 1
    assert decode_rows(Unit(header, bytes(unit))).corrupt.tolist() == list(range(8))
    told = {"DATASUM": str(fits_sum(bytes(unit)))}
    vouched = join_cards(with_cards(split_cards(header), told, after="NAXIS"))
    np.testing.assert_array_equal(decode_rows(Unit(vouched, bytes(unit))).pixels, pixels)


# Quantised floats --------------------------------------------------------------------------


def quantised(pixels: NDArray[np.float32], step: float) -> NDArray[np.float32]:
    return decode_unit(unit_of(compressed_image(pixels, [], step)))


def unit_of(parts: list[bytes | memoryview]) -> Unit:
    return Unit(bytes(parts[0]), b"".join(parts[1:]))


@settings(max_examples=60, deadline=None)
@given(
    arrays.arrays(np.float32, (3, 70), elements=st.floats(-1e6, 1e6, width=32)),
    st.sampled_from([0.3, 1.0, 17.0]),
)
def test_no_pixel_moves_by_more_than_half_a_step(pixels: NDArray[np.float32], step: float) -> None:
    found = quantised(pixels, step)
    # and by what 24 bits of a float leave open
    allowed = 0.5 * step + 2.0**-22 * np.abs(pixels)
    assert (np.abs(found.astype(float) - pixels) <= allowed).all()
    assert (found[pixels == 0] == 0).all()


def test_what_is_not_finite_becomes_zero_and_nothing_wraps_around() -> None:
    pixels = np.array([[np.nan, np.inf, -np.inf, 3e38, -3e38, 5.0, 0.0]], np.float32)
    found = quantised(pixels, 1.0)
    end = np.float32(LARGEST_STEP)
    assert found.tolist() == [[0.0, 0.0, 0.0, end, -end, 5.0, 0.0]]


def test_steps_of_an_eighth_of_the_noise_add_a_thousandth_to_it() -> None:
    # (1/8)^2 / 12 of the variance is 0.13 %, of the noise 0.07 %; its estimate from n
    # pixels in both images is the same but for the rounding, whose share of the noise
    # scatters by 2 * (1/8) / sqrt(12 n) = 1e-4
    noise = np.random.default_rng(2).normal(1000, 16, (600, 800)).astype(np.float32)
    rounded = quantised(noise, 2.0)
    assert rounded.std() / noise.std() == pytest.approx(1 + 0.5 / 64 / 12, abs=3e-4)
    assert abs(rounded.mean(dtype=float) - noise.mean(dtype=float)) < 4 * 2 / np.sqrt(12 * 480_000)


@pytest.mark.parametrize("step", [0.0, -1.0, np.nan, np.inf])
def test_a_senseless_step_is_refused(step: float) -> None:
    with pytest.raises(ValueError, match="no positive number"):
        encode_quantised(np.ones((2, 40), np.float32), step)


def test_the_heap_has_room_for_what_does_not_shrink() -> None:
    rng = np.random.default_rng(3)
    for dtype in STORED:
        limits = np.iinfo(dtype)
        for columns in (1, 31, 33, 500):
            pixels = rng.integers(limits.min, limits.max, (4, columns), dtype, endpoint=True)
            np.testing.assert_array_equal(decoded(*encode_tiles(pixels), pixels), pixels)


def test_all_kernels_can_be_compiled_before_they_are_needed() -> None:
    compile_kernels()


def test_astropy_reads_the_same_pixels() -> None:
    pixels = np.random.default_rng(4).normal(0, 3, (50, 90)).astype(np.float32)
    primary = fits.PrimaryHDU().header.tostring().encode()
    content = b"".join([primary, *compressed_image(pixels, [], 0.5)])
    with fits.open(io.BytesIO(content), checksum=True) as hdus:
        np.testing.assert_array_equal(hdus[1].data, quantised(pixels, 0.5))

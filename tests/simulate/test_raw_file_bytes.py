"""Checksums and cards agree with astropy's, for any content."""

from __future__ import annotations

import io
import re
import warnings

import numpy as np
from astropy.io import fits
from hypothesis import given
from hypothesis import strategies as st

from prepipe.simulate.rawfile import card, compressed_image, header_block

PRIMARY = [card("SIMPLE", True), card("BITPIX", 8), card("NAXIS", 0)]
SUMS = [card("CHECKSUM", ""), card("DATASUM", "")]
# astropy ends a text at a quote that a slash follows, even where the quote is written twice.
TEXT = (
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60)
    .map(str.rstrip)
    .filter(lambda text: re.search(r"' */", text) is None)
)


@given(TEXT, st.integers(-(10**9), 10**9), st.floats(-1e9, 1e9))
def test_any_header_block_has_a_valid_checksum(text: str, whole: int, real: float) -> None:
    cards = [*PRIMARY, card("OBJECT", text), card("N", whole), card("X", real), *SUMS]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Checksum|Datasum")
        with fits.open(io.BytesIO(header_block(cards, 0)), checksum=True) as hdus:
            assert hdus[0].header["OBJECT"] == text
            assert hdus[0].header["N"] == whole
            assert hdus[0].header["X"] == real


@given(st.integers(1, 5), st.integers(1, 40), st.integers(0, 2**32), st.integers(0, 65535))
def test_any_image_comes_back_from_its_rice_tiles(
    rows: int, pairs: int, seed: int, spread: int
) -> None:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, spread, (rows, 2 * pairs), endpoint=True).astype(np.uint16)
    primary = header_block([*PRIMARY, *SUMS], 0)
    image = compressed_image(pixels, [card("EXTNAME", "S4")], ("", ""))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Checksum|Datasum")
        with fits.open(io.BytesIO(primary + image), checksum=True) as hdus:
            assert np.array_equal(hdus["S4"].data, pixels)

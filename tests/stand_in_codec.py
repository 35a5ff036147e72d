"""A pair of commands such as a site has of its own: pixels in steps of 4, deflated.

    python stand_in_codec.py pack IMAGE.fits PACKED [LOG [CALLS THAT FIND THE DISK FULL ...]]
    python stand_in_codec.py unpack PACKED IMAGE.fits

Every packing is a line of the log.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from astropy.io import fits

STEP = 4


def commands(log: Path, full_at: Sequence[int] = ()) -> dict[str, object]:
    """Settings of ``pack.external``; the disk is full at some calls, the first being 1."""
    told = [str(log), *map(str, full_at)]
    return {
        "encode": [sys.executable, __file__, "pack", "{input}", "{output}", *told],
        "decode": [sys.executable, __file__, "unpack", "{input}", "{output}"],
        "suffix": ".z",
    }


def pack(source: Path, target: Path, log: Path, full_at: Sequence[int]) -> None:
    with log.open("a") as lines:
        lines.write(f"{source}\n")
    pixels = fits.getdata(source)
    rounded = np.minimum((pixels.astype(int) + STEP // 2) // STEP, 65535 // STEP).astype("<u2")
    size = np.array(rounded.shape, "<u4").tobytes()
    call = len(log.read_text().splitlines())
    place = Path("/dev/full") if call in full_at else target
    place.write_bytes(size + zlib.compress(rounded.tobytes(), 1))


def unpack(source: Path, target: Path) -> None:
    content = source.read_bytes()
    rounded = np.frombuffer(zlib.decompress(content[8:]), "<u2")
    pixels = rounded.reshape(np.frombuffer(content[:8], "<u4")).astype(np.uint16) * np.uint16(STEP)
    fits.PrimaryHDU(pixels).writeto(target)


if __name__ == "__main__":
    verb, before, after, *rest = sys.argv[1:]
    if verb == "pack":
        pack(Path(before), Path(after), Path(rest[0]), [int(word) for word in rest[1:]])
    else:
        unpack(Path(before), Path(after))

"""The codecs that are measured, as pairs of functions on one frame."""

from __future__ import annotations

import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import log10
from pathlib import Path

import imagecodecs
import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from packing.frames import Truth, header_of
from prepipe.codec import Unit, codec_names, get_codec
from prepipe.errors import PixelError
from prepipe.model import Packet

Pixels = NDArray[np.uint16]

PRESETS = ("precise", "fast", "faint-link")
FULL_SCALE = 65535.0


@dataclass(frozen=True)
class Way:
    """There and back.

    Parameters
    ----------
    name : str
    encode : callable
        Pixels to bytes.
    decode : callable
        Bytes to pixels.
    clock : callable
        CPU time of whoever does the work, s.
    """

    name: str
    encode: Callable[[Pixels], bytes]
    decode: Callable[[bytes], Pixels]
    clock: Callable[[], float] = time.process_time


@dataclass(frozen=True)
class Speed:
    """One core's, Mpixel/s, and what came out."""

    encode: float
    decode: float
    ratio: float
    decoded: Pixels


def measure(way: Way, raw: Pixels, repeats: int) -> Speed:
    """Medians over repetitions; the first, which may compile, is not counted."""
    payload = way.encode(raw)
    decoded = way.decode(payload)
    there, back = [], []
    for _ in range(repeats):
        began = way.clock()
        way.encode(raw)
        packed = way.clock()
        way.decode(payload)
        there.append(packed - began)
        back.append(way.clock() - packed)
    mpix = raw.size / 1e6
    speeds = (mpix / max(statistics.median(times), 1e-9) for times in (there, back))
    return Speed(*speeds, raw.nbytes / len(payload), decoded)


def of_prepipe(name: str, codec: str, parameters: dict[str, object], truth: Truth) -> Way:
    """A codec of prepipe."""
    chosen = get_codec(codec)
    header = header_of(truth.layout)
    unit = Unit(header, b"")
    shape = truth.layout.shape
    packet = Packet(None, None, codec, {}, shape, "uint16", 0, "", "")
    return Way(
        name,
        lambda raw: chosen.encode(raw, parameters, unit).payload,
        lambda payload: chosen.decode(payload, packet, header),
    )


def ways(truth: Truth, note: Callable[[str], None]) -> Iterator[Way]:
    """Every codec that is there; those that are not are noted."""
    if "wavelet" in codec_names():
        for preset in PRESETS:
            yield of_prepipe(preset, "wavelet", {"preset": preset}, truth)
    else:
        note("wavelet: no such codec here, its presets are left out")
    yield openjpeg(truth)
    if "htj2k" in codec_names():
        yield of_prepipe("htj2k", "htj2k", {"step_sigma": 1.0}, truth)
    else:
        note("htj2k: no such codec here, left out")
    if shutil.which("fpack") and shutil.which("funpack"):
        yield fpack()
    else:
        note("fpack: not installed (package libcfitsio-bin), left out")


def openjpeg(truth: Truth) -> Way:
    """OpenJPEG at 10:1, its target found beforehand."""
    chosen = get_codec("jpeg2000").encode(truth.raw, {"ratio": 10.0})
    rms = chosen.parameters["target_rms_adu"]
    if not isinstance(rms, float):
        raise PixelError(f"jpeg2000 says {rms} for its target")
    psnr = 20 * log10(FULL_SCALE / rms)

    def encode(raw: Pixels) -> bytes:
        options = {"codecformat": "J2K", "reversible": False, "resolutions": 6, "numthreads": 1}
        return bytes(imagecodecs.jpeg2k_encode(raw, level=psnr, **options))

    return Way("openjpeg10", encode, lambda data: imagecodecs.jpeg2k_decode(data, numthreads=1))


def fpack() -> Way:
    """cfitsio's lossless Rice, by its own program."""

    def encode(raw: Pixels) -> bytes:
        with _directory() as place:
            plain = place / "frame.fits"
            fits.PrimaryHDU(raw).writeto(plain)
            _run("fpack", "-r", str(plain))
            return (place / "frame.fits.fz").read_bytes()

    def decode(payload: bytes) -> Pixels:
        with _directory() as place:
            (place / "frame.fits.fz").write_bytes(payload)
            _run("funpack", str(place / "frame.fits.fz"))
            return np.asarray(fits.getdata(place / "frame.fits")).astype(np.uint16)

    return Way("fpack", encode, decode, _children)


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


@contextmanager
def _directory() -> Iterator[Path]:
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        yield Path(name)

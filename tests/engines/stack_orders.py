"""Orders for pipelines with a repository, and the stand-ins that carry them out."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

from astropy.io import fits

from prepipe.cameras import load_camera
from prepipe.codec.pack import pack_ccd
from prepipe.codec.packet import write_packet

STANDINS = Path(__file__).parent / "standins"
HSC_RAW = Path("hsc_raw/cutout_HSCA21787010.fits")


def setup_file(directory: Path, **variables: object) -> Path:
    """A file to be sourced that puts the stand-ins on PATH, and tells them what to do."""
    directory.mkdir(parents=True, exist_ok=True)
    told = {"STANDIN_CALLS": directory / "calls.jsonl", **variables}
    path = directory / "setup.sh"
    lines = [f"export {name}={shlex.quote(str(value))}" for name, value in told.items()]
    places = f"{STANDINS}:{Path(sys.executable).parent}"
    path.write_text("\n".join([*lines, f'export PATH="{places}:$PATH"', ""]))
    return path


def calls(directory: Path, program: str) -> list[list[str]]:
    """With what words a stand-in was called."""
    return [call["words"] for call in _calls(directory) if call["program"] == program]


def homes(directory: Path) -> set[str]:
    """Directories of settings that the stand-ins saw."""
    return {call["home"] for call in _calls(directory)}


def _calls(directory: Path) -> list[dict[str, object]]:
    file = directory / "calls.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def hsc_packet(
    directory: Path, raw: Path, detector: int | None = None, codec: str = "rice"
) -> Path:
    """A packet of a raw HSC frame, as if of another detector if told."""
    if detector is not None:
        raw = hsc_raw(directory, raw, detector)
    camera, header = load_camera("hsc"), fits.getheader(raw)
    ccd = camera.ccd(header)
    assert ccd is not None
    return write_packet(directory, pack_ccd(raw, 0, camera.exposure(header), ccd, codec))


def hsc_raw(directory: Path, raw: Path, detector: int) -> Path:
    """A raw HSC frame as if of another detector."""
    directory.mkdir(parents=True, exist_ok=True)
    copy = directory / f"HSCA217870{detector % 58:02d}.fits"
    with fits.open(raw) as hdus:
        hdus[0].header["DET-ID"] = detector
        hdus[0].header["FRAMEID"] = copy.stem
        hdus.writeto(copy)
    return copy

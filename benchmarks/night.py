"""Core-seconds per CCD by stage, against peers in the same run, and a night's latency.

    python benchmarks/night.py [--quick] [--json]

Stages are timed in CPU time of this process, median over repetitions, on one simulated
full-size CCD, after one warm-up that compiles the kernels. Peers do the same work on the
same pixels: sep for background, detection and centroids, numpy in double precision for the
detrending, astropy for reading, fpack for packing without loss (only where it is installed).
The latency is that of `prepipe demo`, wall time on this machine, everything running at once.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import sep
from astropy.io import fits

from prepipe.calibrate.detector.detrend import detrend
from prepipe.calibrate.stars.background import measure_background, subtract
from prepipe.cameras import load_camera
from prepipe.cli.night import run_demo
from prepipe.codec.pack import pack_ccd
from prepipe.codec.packet import verify, write_packet
from prepipe.config import Calibration
from prepipe.engines.base import Order
from prepipe.engines.builtin.buffers import Buffers
from prepipe.engines.builtin.reduce import Stopwatch, reduce_ccd
from prepipe.engines.detector.masters import gather, make_master
from prepipe.engines.raw import RawCcd, list_ccds, read_ccd
from prepipe.engines.references.source import load_reference
from prepipe.model import Kind, Layout
from prepipe.simulate import Settings, simulate_exposure

CCD = 28
Row = dict[str, Any]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, smaller night")
    parser.add_argument("--json", action="store_true", help="one JSON object with rows")
    options = parser.parse_args()
    repeats = 3 if options.quick else 9
    with tempfile.TemporaryDirectory(prefix="prepipe-bench-") as name:
        rows = [*stages(Path(name), repeats), *night(Path(name), options.quick)]
    if options.json:
        print(json.dumps({"rows": rows}, indent=2))
    else:
        for row in rows:
            print(f"{row['name']:48s} {row['value']:10.3f} {row['unit']}")


def stages(work: Path, repeats: int) -> list[Row]:
    """Every stage of one CCD, and what peers take for the same."""
    camera = load_camera("decam")
    raw_path = _simulated_night(work)
    hdu = list_ccds(raw_path, camera)[0][0]
    raw = read_ccd(raw_path, hdu, camera)
    rows = []
    for codec in ("none", "rice", "wavelet", "jpeg2000"):
        packed = pack_ccd(raw_path, hdu, raw.exposure, raw.ccd, codec)
        packet = write_packet(work / codec, packed)
        seconds = _median(
            lambda codec=codec: pack_ccd(raw_path, hdu, raw.exposure, raw.ccd, codec), repeats
        )
        rows += [
            _row(f"pack {codec}", seconds, "core-s/CCD"),
            _row(f"pack {codec}: ratio", packed.packet.parameters["ratio"], ""),
            _row(f"verify {codec}", _median(lambda p=packet: verify(p), repeats), "core-s/CCD"),
            _row(
                f"decode {codec}",
                _median(lambda p=packet: read_ccd(p, None, camera), repeats),
                "core-s/CCD",
            ),
        ]
    rows += _calibration(work, camera, work / "rice", repeats)
    return rows + _peers(raw, camera.layout(raw.header, raw.pixels), raw_path, repeats)


def _calibration(work: Path, camera: Any, packets: Path, repeats: int) -> list[Row]:
    packet = next(packets.iterdir())
    reference = load_reference(work / "stars.fits", "g")
    order = Order(packet, "decam", Calibration(), work / "products", work / "masters")
    took: dict[str, list[float]] = {}
    buffers = Buffers()
    for repeat in range(repeats + 1):
        watch = Stopwatch(time.process_time)
        with watch.timing("read"):
            raw = read_ccd(packet, None, camera)
        reduce_ccd(raw, camera, order, reference, watch, buffers)
        if repeat > 0:
            for step, seconds in watch.seconds.items():
                took.setdefault(step, []).append(seconds)
    medians = {step: statistics.median(values) for step, values in took.items()}
    rows = [_row(f"calibrate: {step}", value, "core-s/CCD") for step, value in medians.items()]
    return [*rows, _row("calibrate: all", sum(medians.values()), "core-s/CCD")]


def _peers(raw: RawCcd, layout: Layout, path: Path, repeats: int) -> list[Row]:
    frame = detrend(raw.pixels, layout)
    image = np.ascontiguousarray(frame.image)
    background = measure_background(image, frame.mask)

    def with_sep() -> None:
        sky = sep.Background(image, bw=64, bh=64)
        flat = image - sky.back()
        found = sep.extract(flat, 5.0, err=sky.globalrms)
        sep.winpos(flat, found["x"], found["y"], np.full(len(found), 1.7))

    ours = _median(
        lambda: (measure_background(image, frame.mask), subtract(image, background)), repeats
    )
    pairs = {
        "detrend / numpy float64": (
            _median(lambda: detrend(raw.pixels, layout), repeats),
            _median(lambda: _numpy_detrend(raw.pixels, layout), repeats),
        ),
        "sky / sep.Background": (
            ours,
            _median(lambda: image - sep.Background(image, bw=64, bh=64).back(), repeats),
        ),
    }
    rows = [_row("peer sep: sky, sources, centroids", _median(with_sep, repeats), "core-s/CCD")]
    for name, (own, peer) in pairs.items():
        rows.append(
            _row(f"speed against {name.split(' / ')[1]}: {name.split(' / ')[0]}", peer / own, "x")
        )
    rows.append(
        _row(
            "peer astropy: read one CCD",
            _median(lambda: _astropy_read(path), repeats),
            "core-s/CCD",
        )
    )
    return rows + _fpack(raw, repeats)


def _numpy_detrend(pixels: np.ndarray, layout: Layout) -> np.ndarray:
    """The textbook way: one temporary array an operation."""
    image = np.empty(layout.trimmed_shape)
    for amplifier in layout.amplifiers:
        assert amplifier.overscan is not None
        level = np.median(pixels[amplifier.overscan.slices], axis=1)
        data = pixels[amplifier.data.slices].astype(float)
        image[amplifier.trimmed.slices] = (data - level[:, None]) * amplifier.gain
    variance = np.maximum(image, 0.0) + layout.amplifiers[0].read_noise ** 2
    return np.where(variance > 0, image, 0.0)


def _astropy_read(path: Path) -> Any:
    with fits.open(path, memmap=False) as hdus:
        return hdus[1].data


def _fpack(raw: RawCcd, repeats: int) -> list[Row]:
    if shutil.which("fpack") is None:
        return []
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "raw.fits"
        fits.PrimaryHDU(raw.pixels).writeto(path)
        begin = time.perf_counter()
        for _ in range(repeats):
            subprocess.run(["fpack", "-F", "-S", str(path)], check=True, stdout=subprocess.DEVNULL)
        return [_row("peer fpack: Rice", (time.perf_counter() - begin) / repeats, "s/CCD")]


def night(work: Path, quick: bool) -> list[Row]:
    """From a file at the telescope to graded CCDs, everything on this machine."""
    exposures, ccds = (2, 2) if quick else (5, 6)
    done = run_demo(work / "night", exposures, ccds, 1, lambda _: None)
    assert not done.failures, done.failures
    assert done.status.latency is not None
    return [
        _row(f"night of {exposures} x {ccds} CCDs: latency, median", done.status.latency.p50, "s"),
        _row(f"night of {exposures} x {ccds} CCDs: latency, 95 %", done.status.latency.p95, "s"),
        _row(f"night of {exposures} x {ccds} CCDs: all", done.seconds, "s"),
    ]


def _simulated_night(work: Path) -> Path:
    camera = load_camera("decam")
    frames = [
        simulate_exposure(Settings(ccds=(CCD,), kind=kind), index, work / "raw")
        for kind in (Kind.ZERO, Kind.DOME_FLAT)
        for index in range(2)
    ]
    for group in gather(frames, camera)[0]:
        make_master(group, work / "masters", camera)
    sky = Settings(ccds=(CCD,))
    sky.star_field.write_reference(work / "stars.fits")
    return simulate_exposure(sky, 0, work / "raw")


def _median(work: Callable[[], object], repeats: int) -> float:
    work()
    took = []
    for _ in range(repeats):
        begin = time.process_time()
        work()
        took.append(time.process_time() - begin)
    return statistics.median(took)


def _row(name: str, value: Any, unit: str) -> Row:
    return {"name": name, "value": round(float(value), 4), "unit": unit}


if __name__ == "__main__":
    sys.exit(main())

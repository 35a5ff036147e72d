"""What each codec saves, costs and takes: one core, CPU time, the same frames for all.

    python benchmarks/codec.py [--quick] [--seed N] [--json]

A simulated frame of one full DECam CCD (20 s of g, grey: sky 98 ADU with a noise of 5.25, read
noise 1.75 ADU, stars of 4 pixels) goes there and back through every codec: the presets of
wavelet, OpenJPEG at 10:1, HTJ2K with steps of one sigma, and fpack, which is lossless. Rows with
``.sharp`` are of a frame with stars of 2.9 pixels, ``seeing2.9`` of the same and the preset fast
that is told this seeing. ``scatter`` is what packing adds to the fluxes of stars in units of their
photon and read noise, ``found`` the part of 700 transients of 5 to 10 sigma, two in five of them on
galaxies, found in the difference to a template of 16 exposures; ``bias`` is that of their light,
``bright_bias`` that of stars above 60 sigma. Codecs share noise and places: their differences are
surer than the 0.011 of ``found`` itself.

``residual.total_ratio`` is that of packet and residual together, which are the original bit for
bit; the rows beside it hold their bytes against lossless JPEG 2000 and fpack.

``exposure62_core_s`` is the whole packing of 62 CCDs from a raw file of Rice tiles, by four of
them; ``threads_scaling`` how much two threads pack together. Medians over repetitions.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from packing import codecs, residuals
from packing.codecs import Speed, Way
from packing.frames import TEMPLATE_DEPTH, Truth, grey_frame

from prepipe.calibrate.stars.background import subtract
from prepipe.cameras import load_camera
from prepipe.codec import codec_names
from prepipe.codec.pack import pack_ccd
from prepipe.quality.fidelity import (
    BRIGHT_SNR,
    SKY_LIMITED_SNR,
    flux_changes,
    joined,
    source_changes,
    transient_changes,
)
from prepipe.quality.injection import Transients
from prepipe.quality.scene import Flattened, Scene, flatten, see
from prepipe.simulate import simulate_night
from prepipe.telescope.intake import ccd_spans, read_exposure

Row = dict[str, Any]

SHARP_PX = 2.9
SEED = 2
CCDS, SIMULATED = 62, (28, 29, 34, 35)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, in a minute")
    parser.add_argument("--seed", type=int, default=SEED, help="other frames of the same kind")
    parser.add_argument("--json", action="store_true", help="one JSON object with rows")
    options = parser.parse_args()
    rows = list(measured(options.quick, options.seed))
    if options.json:
        print(json.dumps({"rows": rows}, indent=2))
    else:
        for each in rows:
            print(f"{each['name']:32s} {each['value']:10.4f} {each['unit']}")


def measured(quick: bool, seed: int) -> Iterator[Row]:
    """All rows."""
    repeats = 1 if quick else 5
    truth = grey_frame(seed=seed)
    judge = Judge(truth)
    yield row("found.original", judge.found(truth.raw), "of transients")
    there = list(codecs.ways(truth, say))
    for way in there:
        speed = codecs.measure(way, truth.raw, repeats)
        yield from loss_rows(way.name, speed, judge)
        yield from speed_rows(way.name, speed)
    yield from residual_rows(truth, repeats, ("fast",) if quick else codecs.PRESETS)
    yield from sharp_rows(quick, seed + 3)
    chief = next((way for way in there if way.name == "fast"), there[0])
    yield row("threads_scaling", scaling(chief, truth), "of one thread")
    yield row("exposure62_core_s", exposure_core_s(), "s")


def sharp_rows(quick: bool, seed: int) -> Iterator[Row]:
    """The same in good seeing, which the codec does not know, and which it is told."""
    sharp = grey_frame(SHARP_PX, sky_e=250.0, seed=seed)
    judge = Judge(sharp)
    yield row("found.original.sharp", judge.found(sharp.raw), "of transients")
    for way in codecs.ways(sharp, lambda _: None):
        if way.name == "fast" or not quick:
            yield from loss_rows(f"{way.name}.sharp", codecs.measure(way, sharp.raw, 1), judge)
    if "wavelet" in codec_names():
        for preset, name in (("fast", "seeing2.9"), ("faint-link", "faint-link.seeing2.9")):
            told = {"preset": preset, "seeing_px": SHARP_PX}
            way = codecs.of_prepipe(name, "wavelet", told, sharp)
            yield from loss_rows(name, codecs.measure(way, sharp.raw, 1), judge)


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


def row(name: str, value: float, unit: str) -> Row:
    """One figure."""
    return {"name": name, "value": value if np.isfinite(value) else None, "unit": unit}


def loss_rows(name: str, speed: Speed, judge: Judge) -> Iterator[Row]:
    """What a codec does to a frame."""
    yield row(f"ratio.{name}", speed.ratio, "to 1")
    yield from judge.rows(name, speed.decoded)
    say(f"{name}: {speed.ratio:.2f}:1")


def speed_rows(name: str, speed: Speed) -> Iterator[Row]:
    """Mpixel a second of one core."""
    yield row(f"encode_mpix_s.{name}", speed.encode, "Mpixel/s")
    yield row(f"decode_mpix_s.{name}", speed.decode, "Mpixel/s")


def residual_rows(truth: Truth, repeats: int, presets: Sequence[str]) -> Iterator[Row]:
    """What a night's packet and its residual take together, by preset."""
    for total in residuals.totals(truth, repeats, presets):
        name = total.preset
        yield row(f"residual.total_ratio.{name}", total.ratio, "to 1")
        over, under = total.over_best_lossless, total.under_fpack
        yield row(f"residual.over_best_lossless_pct.{name}", over, "% over JPEG 2000 5/3")
        yield row(f"residual.under_fpack_pct.{name}", under, "% under fpack")
        yield from speed_rows(f"residual.{name}", total.speed)
        say(f"residual, {name}: {total.ratio:.2f}:1")


class Judge:
    """Tells what became of a frame.

    Parameters
    ----------
    truth : Truth
    """

    def __init__(self, truth: Truth) -> None:
        self.truth = truth
        self._scene: Scene = see(truth.raw, truth.layout, 4.0)
        sky = self._scene.flat.background
        self._template = subtract(truth.template, sky)
        self._whole = self._flat(truth.raw)
        self._usable = self._on_sound_pixels(truth.transients)

    def found(self, decoded: np.ndarray) -> float:
        """Part of the transients that the difference to the template shows."""
        after = self._difference(self._flat(decoded))
        before = self._difference(self._whole)
        return transient_changes(before, after, self._usable, self._scene.profile).found

    def rows(self, name: str, decoded: np.ndarray) -> Iterator[Row]:
        """Loss."""
        after = self._flat(decoded)
        place = self._usable.x, self._usable.y
        faint = flux_changes(self._whole, after, *place, self._scene.profile)
        stars = source_changes(self._scene, after).fluxes
        scatter = joined((faint, stars.between(0.0, SKY_LIMITED_SNR))).scatter
        yield row(f"scatter.{name}", scatter, "of photon noise")
        yield row(f"found.{name}", self.found(decoded), "of transients")
        yield row(f"bias.{name}", faint.change.sum() / self._usable.flux.sum(), "of flux")
        bright = stars.between(BRIGHT_SNR, np.inf).relative_bias
        yield row(f"bright_bias.{name}", bright, "of flux")

    def _flat(self, raw: np.ndarray) -> Flattened:
        scene = self._scene
        return flatten(raw, self.truth.layout, scene.mask, scene.dead, scene.flat.background)

    def _difference(self, flat: Flattened) -> Flattened:
        """The frame less its template; the noise is that of both."""
        difference = flat.image - self._template
        difference -= np.median(difference[::8, ::8])
        both = np.float32(np.sqrt(1 + 1 / TEMPLATE_DEPTH))
        own = self._scene.flat.background
        return Flattened(difference, replace(own, rms=own.rms * both))

    def _on_sound_pixels(self, transients: Transients) -> Transients:
        stamps = self._scene.profile.stamps(transients.x, transients.y)
        sound = np.all(self._scene.mask[stamps.rows, stamps.columns] == 0, axis=(1, 2))
        columns = (transients.x, transients.y, transients.flux, transients.snr)
        return Transients(*(values[sound] for values in columns))


def scaling(way: Way, truth: Truth, tasks: int = 6) -> float:
    """Throughput of two threads over that of one, wall time."""

    def seconds(threads: int) -> float:
        with ThreadPoolExecutor(threads) as pool:
            began = time.monotonic()
            list(pool.map(lambda _: way.encode(truth.raw), range(tasks)))
            return time.monotonic() - began

    return seconds(1) / seconds(2)


def exposure_core_s() -> float:
    """CPU time of packing 62 CCDs of a raw file, Rice decoding, checks and all."""
    camera = load_camera("decam")
    wavelet = "wavelet" in codec_names()
    codec, told = ("wavelet", {"preset": "fast"}) if wavelet else ("jpeg2000", {"ratio": 10.0})
    with tempfile.TemporaryDirectory() as name:
        simulate_night(Path(name), 1, SIMULATED)
        path = next(Path(name).glob("*.fits.fz"))
        raw, spans = read_exposure(path, camera), ccd_spans(path, camera)
        assert raw.exposure is not None
        began = time.process_time()
        for ccd in raw.ccds:
            pack_ccd(path, spans[ccd.number], raw.exposure, ccd, codec, told)
        return (time.process_time() - began) * CCDS / len(raw.ccds)


if __name__ == "__main__":
    main()

"""One simulated night of two CCDs, calibrated once for all tests of the engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from prepipe.cameras import load_camera
from prepipe.config import Calibration
from prepipe.engines.base import Order, Outcome
from prepipe.engines.builtin.reduce import carry_out
from prepipe.engines.detector.masters import gather, make_master
from prepipe.engines.raw import list_ccds
from prepipe.model import Kind
from prepipe.simulate import Settings, Truth, read_truth, simulate_exposure

CCDS = (28, 35)


@dataclass(frozen=True)
class Night:
    """Raw files, masters, catalogue, truth and what the engine made of them."""

    root: Path
    raw: Path
    truth: Truth
    reference: Path
    masters: Path
    outcomes: dict[int, Outcome]


def order_of(night_root: Path, source: Path, hdu: int | None, **changes: object) -> Order:
    told = {
        "camera": "decam",
        "calibration": Calibration(reference=night_root / "stars.fits"),
        "products": night_root / "products",
        "calibrations": night_root / "masters",
        "hdu": hdu,
        **changes,
    }
    return Order(source=source, **told)


def make_night(root: Path) -> Night:
    """Simulate zeros, flats and one exposure, and calibrate it."""
    camera = load_camera("decam")
    frames = []
    for kind, first in ((Kind.ZERO, 941300), (Kind.DOME_FLAT, 941310)):
        settings = Settings(ccds=CCDS, kind=kind, first_exposure=first)
        frames += [simulate_exposure(settings, k, root / kind) for k in range(3)]
    groups, failed = gather(frames, camera)
    assert not failed
    for group in groups:
        make_master(group, root / "masters", camera)
    settings = Settings(seed=5, ccds=CCDS)
    settings.star_field.write_reference(root / "stars.fits")
    raw = simulate_exposure(settings, 0, root / "raw")
    outcomes = {
        ccd.number: carry_out(order_of(root, raw, hdu)) for hdu, ccd in list_ccds(raw, camera)
    }
    return Night(root, raw, read_truth(raw), root / "stars.fits", root / "masters", outcomes)

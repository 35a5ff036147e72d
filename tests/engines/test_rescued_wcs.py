"""A CCD with too few stars to be found alone is solved where others tell the pointing."""

from __future__ import annotations

from pathlib import Path

import fitsio
import numpy as np
import pytest
from astropy.io import fits
from simulated_night import Night, order_of

from prepipe.config import Calibration
from prepipe.engines.builtin.reduce import carry_out
from prepipe.engines.raw import list_ccds
from prepipe.model import PointingHint


def sparse_reference(night: Night, tmp_path: Path, stars: int) -> Path:
    """The brightest few unsaturated reference stars of the night's CCDs, far fewer than usual."""
    table = fitsio.read(night.reference)
    product = night.outcomes[28].reduction.catalogue
    bright = fitsio.read(product)
    bright = bright[bright["MATCHED"] & (bright["FLAGS"] == 0)]
    bright = bright[np.argsort(bright["MAG"])][:stars]
    distance = np.hypot(
        (table["ra"][:, None] - bright["RA"]) * np.cos(np.deg2rad(2.2)),
        table["dec"][:, None] - bright["DEC"],
    )
    path = tmp_path / "sparse.fits"
    fits.BinTableHDU(table[np.unique(distance.argmin(axis=0))]).writeto(path)
    return path


def hdu_of(night: Night, ccd: int) -> int:
    from prepipe.cameras import load_camera

    return {found.number: hdu for hdu, found in list_ccds(night.raw, load_camera("decam"))}[ccd]


def hint(night: Night, wrong_by: float = 0.0, relaxed: bool = True) -> PointingHint:
    found = night.outcomes[28].reduction
    return PointingHint(
        "neighbouring CCDs",
        found.offset_east_arcsec + wrong_by,
        found.offset_north_arcsec,
        relaxed,
    )


def test_the_shift_that_is_told_is_the_pointing_error(night: Night) -> None:
    for outcome in night.outcomes.values():
        found = outcome.reduction
        told = np.hypot(found.offset_east_arcsec, found.offset_north_arcsec)
        assert told == pytest.approx(found.offset_arcsec, abs=0.05)
        assert [attempt.rung for attempt in found.wcs_tries] == ["header"]


def test_six_stars_do_with_a_hint_and_not_without(night: Night, tmp_path: Path) -> None:
    reference = sparse_reference(night, tmp_path, 6)
    order = order_of(
        night.root,
        night.raw,
        hdu_of(night, 28),
        calibration=Calibration(reference=reference),
        products=tmp_path / "a",
    )
    assert carry_out(order).reduction.wcs_rms_mas is None
    helped = order_of(
        night.root,
        night.raw,
        hdu_of(night, 28),
        calibration=Calibration(reference=reference),
        products=tmp_path / "b",
        hints=(hint(night, relaxed=False), hint(night)),
    )
    found = carry_out(helped).reduction
    assert [(attempt.rung, attempt.accepted) for attempt in found.wcs_tries] == [
        ("header", False),
        ("neighbouring CCDs", False),
        ("neighbouring CCDs", True),
    ]
    true = night.outcomes[28].reduction
    assert found.offset_arcsec == pytest.approx(true.offset_arcsec, abs=0.2)


def test_a_wrong_field_is_not_rescued_by_any_hint(night: Night, tmp_path: Path) -> None:
    table = fitsio.read(night.reference)
    table["ra"] += 0.31
    fits.BinTableHDU(table).writeto(tmp_path / "elsewhere.fits")
    order = order_of(
        night.root,
        night.raw,
        hdu_of(night, 28),
        calibration=Calibration(reference=tmp_path / "elsewhere.fits"),
        products=tmp_path,
        hints=tuple(hint(night, wrong_by=step) for step in (-20.0, 0.0, 20.0)),
    )
    assert carry_out(order).reduction.wcs_rms_mas is None

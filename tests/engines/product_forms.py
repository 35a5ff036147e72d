"""The night's CCD once more, written in other forms."""

from __future__ import annotations

from pathlib import Path

from simulated_night import Night, order_of

from prepipe.cameras import load_camera
from prepipe.codec.fits_bytes import scan_fits
from prepipe.codec.pack import pack_ccd
from prepipe.codec.packet import write_packet
from prepipe.config import Calibration, ProductForm
from prepipe.engines.base import Outcome
from prepipe.engines.builtin.reduce import carry_out
from prepipe.engines.raw import list_ccds, read_exposure

CCD = 28


def calibrated(
    night: Night, products: Path, *, solved: bool = True, photometry: str = "aperture", **form: str
) -> Outcome:
    """The CCD calibrated from a packet of its own and written in the form that is told."""
    camera = load_camera("decam")
    hdu, ccd = next(found for found in list_ccds(night.raw, camera) if found[1].number == CCD)
    packed = pack_ccd(
        night.raw, scan_fits(night.raw)[hdu], read_exposure(night.raw, camera), ccd, "rice", {}
    )
    settings = Calibration(
        reference=night.reference if solved else None,
        photometry=photometry,
        output=ProductForm(**form),
    )
    packet = write_packet(products.parent / "packets", packed)
    return carry_out(order_of(night.root, packet, None, calibration=settings, products=products))

"""How far a site lets the correction of the header's distortion go."""

from __future__ import annotations

from dataclasses import replace

import pytest

from prepipe.cameras.generic import Cards, Description, GenericCamera
from prepipe.config import Calibration
from prepipe.engines.builtin.sky import solve_wcs
from prepipe.engines.builtin.steps import Masters, clean_pixels, measure_sources
from prepipe.engines.builtin.warm_up import SIDE, _frame
from prepipe.model import PointingHint

SECTIONS = Cards(data_section="DATASEC", overscan_section="BIASSEC")
CAMERA = GenericCamera(Description(name="made-up", pixel_scale=0.25, cards=SECTIONS))


@pytest.mark.parametrize("max_order", [1, 2])
@pytest.mark.parametrize("hints", [(), (PointingHint("others", 0.0, 0.0),)])
def test_a_bent_field_is_fitted_up_to_the_order_allowed(
    max_order: int, hints: tuple[PointingHint, ...]
) -> None:
    raw, stars = _frame()
    layout = CAMERA.layout(raw.header, raw.pixels)
    sources = measure_sources(clean_pixels(raw, layout, CAMERA, Masters(), 4.0), 4.0, 5.0).sources
    bent = replace(sources, x=sources.x + 6.0 * (sources.x / SIDE - 0.5) ** 2)
    # Where hints are to be used, the header alone must not do.
    search = 0.5 if hints else 75.0
    if hints:
        stars = replace(stars, dec=stars.dec + 5.0 / 3600.0)
    settings = Calibration(max_order=max_order, search_arcsec=search)
    found = solve_wcs(raw, layout, CAMERA, bent, stars, settings, hints)
    assert found.solution is not None
    assert found.solution.order == max_order
    assert len(found.tries) == 1 + len(hints)


def test_an_order_beyond_the_cubic_of_tpv_is_refused() -> None:
    with pytest.raises(ValueError, match="max_order"):
        Calibration(max_order=4)

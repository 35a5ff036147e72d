"""The made-up frame must go the whole way, or kernels stay cold."""

from __future__ import annotations

from prepipe.cameras.generic import Cards, Description, GenericCamera
from prepipe.config import Calibration
from prepipe.engines.builtin.sky import solve_wcs
from prepipe.engines.builtin.steps import Masters, clean_pixels, measure_sources
from prepipe.engines.builtin.warm_up import _frame, warm_up


def test_the_frame_is_solved_as_a_real_one_would_be() -> None:
    warm_up()
    sections = Cards(data_section="DATASEC", overscan_section="BIASSEC")
    camera = GenericCamera(Description(name="warm-up", pixel_scale=0.25, cards=sections))
    raw, reference = _frame()
    layout = camera.layout(raw.header, raw.pixels)
    clean = clean_pixels(raw, layout, camera, Masters(), 4.0)
    sources = measure_sources(clean, 4.0, 5.0).sources
    assert solve_wcs(raw, layout, camera, sources, reference, Calibration()).solved

"""A worker's memory: it saves time, and changes no bit of what is made in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from simulated_night import Night, order_of

from prepipe.cameras import load_camera
from prepipe.engines.builtin.buffers import Buffers
from prepipe.engines.builtin.reduce import Stopwatch, reduce_ccd
from prepipe.engines.raw import list_ccds, read_ccd
from prepipe.engines.references.source import load_reference


def files_of(night: Night, hdu: int, products: Path, buffers: Buffers | None) -> list[bytes]:
    """What is written of one CCD, by a worker with this memory or by one without."""
    camera = load_camera("decam")
    raw = read_ccd(night.raw, hdu, camera)
    reference = load_reference(night.reference, raw.exposure.band)
    order = order_of(night.root, night.raw, hdu, products=products)
    reduce_ccd(raw, camera, order, reference, Stopwatch(), buffers)
    return [path.read_bytes() for path in sorted(products.rglob("*.fits*"))]


def test_a_ccd_calibrated_in_used_memory_is_that_calibrated_in_fresh_memory(
    night: Night, tmp_path: Path
) -> None:
    (first, _), (second, _) = list_ccds(night.raw, load_camera("decam"))
    buffers = Buffers()
    files_of(night, first, tmp_path / "before", buffers)
    used = files_of(night, second, tmp_path / "used", buffers)
    fresh = files_of(night, second, tmp_path / "fresh", None)
    assert len(fresh) == 2
    assert used == fresh


def test_the_same_name_gives_the_same_memory_whatever_the_shape() -> None:
    buffers = Buffers()
    large = buffers.array("plane", (40, 50), np.float32)
    small = buffers.named("plane")((7, 11), np.uint8)
    assert small.shape == (7, 11)
    assert small.dtype == np.uint8
    assert small.flags.c_contiguous
    assert np.shares_memory(large, small)
    assert buffers.array("plane", (40, 50), np.float32).ctypes.data == large.ctypes.data


def test_memory_grows_with_what_is_asked_of_it() -> None:
    buffers = Buffers()
    small = buffers.array("plane", (3, 4), np.float32)
    small[:] = 1.0
    large = buffers.array("plane", (300, 400), np.float32)
    large[:] = 2.0
    # what was given before stays what it was for whoever still holds it
    assert (small == 1.0).all()


def test_arrays_of_different_names_do_not_overlap() -> None:
    buffers = Buffers()
    planes = [buffers.array(name, (40, 50), np.float32) for name in ("image", "mask", "weight")]
    for number, plane in enumerate(planes):
        plane[:] = number
    assert [plane.min() for plane in planes] == [plane.max() for plane in planes] == [0, 1, 2]


def test_nothing_can_be_asked_for() -> None:
    assert Buffers().array("plane", (0, 5), np.float32).shape == (0, 5)

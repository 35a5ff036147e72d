"""A few simulated frames, made once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import fitsio
import numpy as np
import pytest
from numpy.typing import NDArray
from simulated_ccds import DEAD, NORTH, SOUTH

from prepipe.model import Kind
from prepipe.simulate import Settings, Truth, read_truth, simulate_exposure


@dataclass(frozen=True)
class Exposed:
    """An exposure on disk with its truth."""

    path: Path
    truth: Truth

    def pixels(self, name: str) -> NDArray[np.uint16]:
        return fitsio.read(str(self.path), ext=name)


def expose(out: Path, index: int = 0, **settings: object) -> Exposed:
    path = simulate_exposure(Settings(**settings), index, out)
    return Exposed(path, read_truth(path))


@pytest.fixture(scope="session")
def sky(tmp_path_factory: pytest.TempPathFactory) -> Exposed:
    """An object exposure of a southern, a northern and a dead CCD."""
    out = tmp_path_factory.mktemp("sky")
    return expose(out, ccds=(SOUTH, NORTH, DEAD), sky_mag=21.0)


@pytest.fixture(scope="session")
def zeros(tmp_path_factory: pytest.TempPathFactory) -> tuple[Exposed, Exposed]:
    out = tmp_path_factory.mktemp("zeros")
    first, second = (expose(out, k, ccds=(SOUTH,), kind=Kind.ZERO) for k in (0, 1))
    return first, second


@pytest.fixture(scope="session")
def flats(tmp_path_factory: pytest.TempPathFactory) -> tuple[Exposed, Exposed]:
    out = tmp_path_factory.mktemp("flats")
    first, second = (expose(out, k, ccds=(SOUTH,), kind=Kind.DOME_FLAT) for k in (0, 1))
    return first, second

"""What the tests of the command line share."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from typer.testing import CliRunner, Result

from prepipe.cli import app
from prepipe.model import Ccd, Exposure, Kind, Night

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def no_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may have set the width of tables."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture
def run() -> Run:
    """Call ``prepipe`` with some words."""

    def call(*words: object) -> Result:
        return CliRunner().invoke(app, [str(word) for word in words], prog_name="prepipe")

    return call


@pytest.fixture
def site_file(tmp_path: Path) -> Path:
    """A site of its own, whose telescope and cluster both lie in `tmp_path`."""
    path = tmp_path / "prepipe.toml"
    path.write_text('name = "test site"\ncalibration.reference = "stars.csv"\n')
    (tmp_path / "raw").mkdir()
    rows = "\n".join(f"{150 + i / 1000},{2 + i / 1000},{15 + i / 100}" for i in range(100))
    (tmp_path / "stars.csv").write_text(f"ra,dec,g\n{rows}\n")
    return path


@pytest.fixture
def raw_file(tmp_path: Path) -> Path:
    """A raw exposure with two small CCDs, 25 and 31, of plain noise."""
    primary = fits.PrimaryHDU()
    cards = {
        "EXPNUM": 941420,
        "DATE-OBS": "2020-03-06T03:30:00",
        "OBSTYPE": "object",
        "OBJECT": "field 1",
        "FILTER": "g DECam SDSS c0001 4720.0 1520.0",
        "EXPTIME": 20.0,
    }
    primary.header.update(cards)
    hdus = fits.HDUList([primary])
    for ccd, name in ((31, "N4"), (25, "S29")):
        noise = np.random.default_rng(ccd).normal(1500, 10, (96, 80))
        image = fits.ImageHDU(noise.astype(np.uint16), name=name)
        image.header["CCDNUM"] = ccd
        hdus.append(image)
    path = tmp_path / "DECam_00941420.fits"
    hdus.writeto(path)
    return path


@pytest.fixture
def exposure() -> Exposure:
    """An exposure of two CCDs."""
    start = datetime(2020, 3, 6, 3, 30, tzinfo=UTC)
    return Exposure("decam", 941420, Kind.OBJECT, "field 1", "g", start, 20.0, Night.of(start))


@pytest.fixture
def ccds() -> list[Ccd]:
    """Its CCDs."""
    return [Ccd(25, "S29"), Ccd(31, "N4")]

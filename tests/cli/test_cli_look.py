"""`prepipe look`: a picture of a calibrated CCD."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from prepipe.cli import app


def test_what_is_no_product_is_named_and_exits_with_1(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.fits.fz"
    wrong.write_text("no product")
    done = CliRunner().invoke(app, ["look", str(wrong)])
    assert done.exit_code == 1
    assert str(wrong) in done.stderr


@pytest.mark.parametrize("solved", [True, False], ids=["solved", "unsolved"])
def test_a_product_becomes_a_picture(shared_data: Path, tmp_path: Path, solved: bool) -> None:
    raw = shared_data / "sdss/fpC-004192-r4-0300.fit.gz"
    stars = shared_data / "refcats/sdss_stripe82_stars.fits"
    words = ["--refcat", str(stars)] if solved else []
    calibrated = CliRunner().invoke(
        app, ["calibrate", str(raw), "--camera", "sdss", "--out", str(tmp_path), *words]
    )
    assert calibrated.exit_code == 0
    (product,) = tmp_path.glob("ut*/4/*_4.fits.fz")
    done = CliRunner().invoke(app, ["look", str(product), "--out", str(tmp_path / "pictures")])
    assert done.exit_code == 0
    (picture,) = (tmp_path / "pictures").iterdir()
    assert str(picture) in done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")

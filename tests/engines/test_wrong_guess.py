"""The seeing supposed in the settings is a guess: a wrong one changes nothing, and costs little."""

from __future__ import annotations

from pathlib import Path

import pytest
from simulated_night import Night, order_of

from prepipe.calibrate.stars import psf
from prepipe.config import Calibration
from prepipe.engines.builtin import reduce as builtin


@pytest.mark.parametrize("guess_arcsec", [0.65, 1.9])
def test_a_wrong_guess_is_noticed_before_the_work_is_done(
    night: Night, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guess_arcsec: float
) -> None:
    done = []

    def counted(name: str, work: object) -> object:
        def count(*given: object, **named: object) -> object:
            done.append(name)
            return work(*given, **named)

        return count

    monkeypatch.setattr(builtin, "clean_pixels", counted("clean", builtin.clean_pixels))
    monkeypatch.setattr(psf, "measure", counted("measure", psf.measure))
    settings = Calibration(reference=night.reference, seeing_guess_arcsec=guess_arcsec)
    order = order_of(night.root, night.raw, 1, products=tmp_path, calibration=settings)
    found = builtin.carry_out(order).reduction
    assert done == ["clean", "measure"]
    usual = night.outcomes[found.ccd].reduction
    # the width of the filter, within 15 % of the stars', decides which faint sources are seen
    assert found.seeing_arcsec == pytest.approx(usual.seeing_arcsec, rel=0.01)
    assert found.n_sources == pytest.approx(usual.n_sources, rel=0.05)
    assert found.n_cosmic_rays == pytest.approx(usual.n_cosmic_rays, rel=0.1)
    assert found.zero_point == pytest.approx(usual.zero_point, abs=0.005)

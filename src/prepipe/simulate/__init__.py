"""A telescope for people who have none: raw exposures with real headers and a known truth."""

from prepipe.simulate.settings import BANDS, Band, Settings
from prepipe.simulate.stars import StarField
from prepipe.simulate.telescope import Progress, simulate_exposure, simulate_night
from prepipe.simulate.truth import Truth, read_truth, truth_path

__all__ = [
    "BANDS",
    "Band",
    "Progress",
    "Settings",
    "StarField",
    "Truth",
    "read_truth",
    "simulate_exposure",
    "simulate_night",
    "truth_path",
]

"""How far a calibrated CCD can be trusted."""

from prepipe.quality.grades import grade

__all__ = ["grade"]

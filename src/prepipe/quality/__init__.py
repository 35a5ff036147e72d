"""How far a calibrated CCD can be trusted."""

from prepipe.quality.grades import grade, limits_for

__all__ = ["grade", "limits_for"]

"""The telescope's end: raw exposures are watched for, packed CCD by CCD, and sent."""

from prepipe.telescope.plan import Plan, PlannedCcd, plan_push
from prepipe.telescope.push import Push
from prepipe.telescope.report import Event, Failure, Happening, Report

__all__ = ["Event", "Failure", "Happening", "Plan", "PlannedCcd", "Push", "Report", "plan_push"]

"""The telescope's end: raw exposures are watched for, packed CCD by CCD, and sent."""

from prepipe.telescope.archive import (
    Archive,
    ArchivePlan,
    ArchiveReport,
    PlannedOriginal,
    plan_archive,
)
from prepipe.telescope.plan import Plan, PlannedCcd, plan_push
from prepipe.telescope.push import Push
from prepipe.telescope.report import Event, Failure, Happening, Report

__all__ = [
    "Archive",
    "ArchivePlan",
    "ArchiveReport",
    "Event",
    "Failure",
    "Happening",
    "Plan",
    "PlannedCcd",
    "PlannedOriginal",
    "Push",
    "Report",
    "plan_archive",
    "plan_push",
]

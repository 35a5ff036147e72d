"""The cluster's end: packets received, CCDs dispatched, outcomes noted."""

from prepipe.cluster.events import Event, Report, What
from prepipe.cluster.ingest import Ingest

__all__ = ["Event", "Ingest", "Report", "What"]

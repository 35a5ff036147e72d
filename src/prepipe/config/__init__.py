"""Everything a site may set, read from ``prepipe.toml``.

Every field has a default that works on one machine, a unit in its name or
description, and the description itself is what ``prepipe init`` writes beside it.
"""

from __future__ import annotations

from prepipe.config.calibration import (
    BiasChange,
    Calibration,
    FlatChange,
    Limits,
    ProductForm,
    Rescue,
)
from prepipe.config.cluster import Cluster
from prepipe.config.compute import Compute
from prepipe.config.engines import EXTERNAL_ENGINES, Engines, Hscpipe, Lsst, Photpipe
from prepipe.config.site import Site
from prepipe.config.telescope import (
    PACK_SETTINGS,
    External,
    Link,
    Method,
    Pack,
    Push,
    Telescope,
)

__all__ = [
    "EXTERNAL_ENGINES",
    "PACK_SETTINGS",
    "BiasChange",
    "Calibration",
    "Cluster",
    "Compute",
    "Engines",
    "External",
    "FlatChange",
    "Hscpipe",
    "Limits",
    "Link",
    "Lsst",
    "Method",
    "Pack",
    "Photpipe",
    "ProductForm",
    "Push",
    "Rescue",
    "Site",
    "Telescope",
]

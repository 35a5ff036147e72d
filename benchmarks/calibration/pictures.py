"""Two pictures of the results, small enough to be kept beside a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from calibration.astrometry import PLACES
from calibration.fields import KINDS

__all__ = ["draw"]

ORDERS = ("linear", "quadratic", "cubic")
CHAINS = {"libraries": "Python libraries", "classical": "classical chain"}


def draw(rows: list[dict[str, Any]], directory: Path) -> None:
    """Write ``calibration-speed.png`` and ``calibration-astrometry.png``."""
    directory.mkdir(parents=True, exist_ok=True)
    values = {row["name"]: float(row["value"]) for row in rows}
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        _speed(values).savefig(directory / "calibration-speed.png", dpi=110)
        _astrometry(values).savefig(directory / "calibration-astrometry.png", dpi=110)


def _speed(values: dict[str, float]) -> Figure:
    figure = Figure(figsize=(6.4, 2.8), layout="constrained")
    axes = figure.subplots()
    bars = [("prepipe", "core_seconds.{}")]
    bars += [(name, f"{chain}.core_seconds.{{}}") for chain, name in CHAINS.items()]
    for k, (label, key) in enumerate(bars):
        known = [(i, values[key.format(n)]) for i, n in enumerate(KINDS) if key.format(n) in values]
        if known:
            places, seconds = np.array(known).T
            drawn = axes.bar(places + 0.27 * (k - 1), seconds, 0.25, label=label)
            axes.bar_label(drawn, fmt="%.2g")
    axes.set_yscale("log")
    axes.set_xticks(range(len(KINDS)), list(KINDS))
    axes.set_ylabel("core-seconds per CCD")
    axes.margins(y=0.2)
    axes.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.18))
    return figure


def _astrometry(values: dict[str, float]) -> Figure:
    figure = Figure(figsize=(6.4, 2.8), layout="constrained")
    axes = figure.subplots()
    for k, order in enumerate(ORDERS):
        keys = [f"astrometry.systematic_mas.{order}.{name}" for name in PLACES]
        heights = [max(values[key], 1e-3) for key in keys]
        axes.bar(np.arange(len(PLACES)) + 0.2 * (k - 1.5), heights, 0.18, label=order)
    noisy = [values[f"astrometry.error_mas.{name}"] for name in PLACES]
    axes.bar(np.arange(len(PLACES)) + 0.3, noisy, 0.18, label="order chosen, with noise")
    axes.set_xticks(range(len(PLACES)), list(PLACES))
    axes.set_ylabel("rms distance from the truth, mas")
    axes.legend(frameon=False, ncols=4, loc="upper center", bbox_to_anchor=(0.5, 1.18))
    return figure

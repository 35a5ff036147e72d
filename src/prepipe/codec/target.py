"""What a lossy codec aims at: one figure of several that it knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite

from prepipe.errors import ConfigError

__all__ = ["one_target"]


def one_target(
    codec: str,
    parameters: Mapping[str, object],
    targets: Sequence[str],
    default: tuple[str, float],
) -> tuple[str, float]:
    """The one target that is set, and its value.

    Parameters
    ----------
    codec : str
        Who asks, for the message.
    parameters : mapping
        What the codec was told.
    targets : sequence of str
        Names that it knows. A ``ratio`` must be above 1, all others above 0.
    default : tuple of str and float
        If nothing is set.

    Raises
    ------
    ConfigError
        If more than one is set, or an unknown or senseless one.
    """
    unknown = sorted(set(parameters) - set(targets))
    if unknown or len(parameters) > 1:
        raise ConfigError(
            f"codec {codec} takes one of {', '.join(targets)}, not {sorted(parameters)}"
        )
    target, value = next(iter(parameters.items()), default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"codec {codec}: {target} is {value!r}, not a number")
    if not isfinite(value) or value <= (1 if target == "ratio" else 0):
        raise ConfigError(f"codec {codec}: {target} is {value}, which is too small")
    return target, float(value)

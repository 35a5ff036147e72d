"""Stronger packing while too much waits for the line, and back: when, and by how much.

What waits is told in seconds of line time: its bytes, as far as they are packed or as they will
be, divided by what the line carries. Above ``pack.backlog_s`` the next stronger preset is taken,
below a quarter of it the next milder one. A step changes the bytes of what waits by less than a
half, so that none is taken back for its own sake.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import exp
from typing import NamedTuple

from prepipe import config

__all__ = ["RATIOS", "RELEASE", "Adaptation", "Limits", "LineSpeed", "PacketSizes", "next_preset"]

RATIOS = {"precise": 9.5, "fast": 18.0, "faint-link": 27.0}
"""About what a preset makes of an exposure of the sky: how sizes of packets compare."""

RELEASE = 0.25
"""A milder preset is taken when less than this part of ``backlog_s`` waits."""

_ORDER = tuple(RATIOS)
_MEMORY_S = 60.0
_FEWEST_PACKETS = 3
_NEWS = 0.1


class Limits(NamedTuple):
    """What the site allows.

    Attributes
    ----------
    mildest, strongest : str
        Presets; packing stays between them.
    backlog_s : float
        Line time of what waits from which on a stronger preset is taken, s.
    """

    mildest: str
    strongest: str
    backlog_s: float

    @classmethod
    def of(cls, settings: config.Pack) -> Limits | None:
        """Limits of a site; None if it packs by one preset, whatever waits."""
        if settings.strongest in (None, settings.preset):
            return None
        return cls(settings.preset, str(settings.strongest), settings.backlog_s)


def next_preset(current: str, backlog_s: float | None, limits: Limits) -> str:
    """The preset of what is begun next: the current one, or one a step beside it.

    Parameters
    ----------
    current : str
        Preset in use.
    backlog_s : float or None
        Line time of what waits, packed by `current`, s; None if it is not known.
    limits : Limits

    Returns
    -------
    str
        Never milder nor stronger than the limits.
    """
    mildest, strongest = _ORDER.index(limits.mildest), _ORDER.index(limits.strongest)
    place = min(max(_ORDER.index(current), mildest), strongest)
    if backlog_s is None:
        return _ORDER[place]
    if backlog_s > limits.backlog_s:
        return _ORDER[min(place + 1, strongest)]
    if backlog_s < RELEASE * limits.backlog_s:
        return _ORDER[max(place - 1, mildest)]
    return _ORDER[place]


class LineSpeed:
    """What the line carries, measured while packets wait for it; about its last minute counts.

    While nothing waits, the line is as slow as whoever feeds it, which tells nothing.
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._bytes = 0.0
        self._arrived = 0
        self._packets = 0
        self._since: float | None = None

    def look(self, now: float, *, is_full: bool) -> None:
        """Say whether packets wait for a place on the line from now on."""
        if self._since is not None and now > self._since:
            fades = exp((self._since - now) / _MEMORY_S)
            self._seconds = self._seconds * fades + (now - self._since)
            self._bytes = self._bytes * fades + self._arrived
            self._arrived = 0
        self._since = now if is_full else None

    def sent(self, size: int) -> None:
        """So many bytes are at the far side."""
        if self._since is not None:
            self._arrived += size
            self._packets += 1

    @property
    def bytes_per_s(self) -> float | None:
        """None before a few packets have told."""
        known = self._packets >= _FEWEST_PACKETS and self._seconds > 0 and self._bytes > 0
        return self._bytes / self._seconds if known else None


class PacketSizes:
    """How large packets become, by what was packed last."""

    def __init__(self) -> None:
        self._lossless = 0.0
        self._lossy = 0.0

    def note(self, preset: str, size: int) -> None:
        """A packet was made, of so many bytes; no preset means that nothing was lost."""
        if preset:
            self._lossy = _mean(self._lossy, size * RATIOS[preset])
        else:
            self._lossless = _mean(self._lossless, size)

    def expected(self, preset: str) -> float:
        """Bytes of a packet to be made; 0 before one of its sort was."""
        return self._lossy / RATIOS[preset] if preset else self._lossless


class Adaptation:
    """Which preset exposures are packed by that are begun now.

    Parameters
    ----------
    limits : Limits

    Attributes
    ----------
    preset : str
        In use.
    speed : LineSpeed
    sizes : PacketSizes
        Both are told by whoever packs and sends.
    """

    def __init__(self, limits: Limits) -> None:
        self.preset = limits.mildest
        self.speed = LineSpeed()
        self.sizes = PacketSizes()
        self._limits = limits

    def look(self, packed_bytes: int, to_pack: Iterable[bool]) -> str:
        """Decide anew.

        Parameters
        ----------
        packed_bytes : int
            Of packets that wait or are under way.
        to_pack : iterable of bool
            Of each CCD that waits to be packed, whether it may lose anything.

        Returns
        -------
        str
            What changed and why, in one sentence; empty if nothing did.
        """
        lossy, lossless = self.sizes.expected(self.preset), self.sizes.expected("")
        size = packed_bytes + sum(lossy if may_lose else lossless for may_lose in to_pack)
        speed = self.speed.bytes_per_s
        backlog_s = 0.0 if size == 0 else None if speed is None else size / speed
        before, self.preset = self.preset, next_preset(self.preset, backlog_s, self._limits)
        if self.preset == before or backlog_s is None:
            return ""
        return self._told(before, backlog_s, speed)

    def _told(self, before: str, backlog_s: float, speed: float | None) -> str:
        is_stronger = _ORDER.index(self.preset) > _ORDER.index(before)
        limit_s = self._limits.backlog_s * (1.0 if is_stronger else RELEASE)
        at = "" if speed is None else f" at {speed * 8e-6:.3g} Mbit/s"
        return (
            f"exposures are packed by {self.preset} now, no longer by {before}: what waits takes "
            f"{backlog_s:.0f} s{at}, {'more' if is_stronger else 'less'} than {limit_s:.0f} s"
        )


def _mean(mean: float, value: float) -> float:
    return mean + _NEWS * (value - mean) if mean else value

"""What a link can do, measured over it: nothing is written at the far end."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prepipe import config
from prepipe.errors import LinkError
from prepipe.link.connection import State
from prepipe.link.pacing import HEADERS, connections_for
from prepipe.link.protocol import Welcome
from prepipe.link.ssh import LinkState, SshLink

__all__ = ["Step", "Trial", "try_link"]

_FILE_BYTES = 8 << 20
_WIDEST_BYTES = 4 << 20
"""Under way on a connection at most."""
_UNPACED = 1e6
"""Mbit/s: the line alone says how fast."""
_ROOM = 2.0
"""Over what a connection carried: enough not to be in the way, and none falls silent for long."""
_LOOK_S = 0.1
_PATIENCE_S = 30.0
_NAME = "trial_00000000_01.packet"
_ENOUGH = 0.95
"""Of the best: more connections than that takes are not worth their handshakes."""


@dataclass(frozen=True)
class Step:
    """What so many connections carried.

    Parameters
    ----------
    connections : int
        That were open.
    mbit_s : float
        Of payload, Mbit/s, over the best half of the time.
    retransmitted : float or None
        Fraction of the segments that were sent again: the line's loss, and what its queue dropped,
        which is a lot where the connections together are faster than the line; None where the
        kernel does not tell.
    rtt_s : float
        Least round trip, s.
    """

    connections: int
    mbit_s: float
    retransmitted: float | None
    rtt_s: float


@dataclass(frozen=True)
class Trial:
    """A link as it was found.

    Parameters
    ----------
    host, prepipe : str
        Of the far end.
    free_bytes : int
        Of the landing directory's disk.
    opening_s : float
        Until the first connection could be used, s.
    steps : tuple of Step
    notices : tuple of str
        What has to be done without.
    rate : float
        To be set: Mbit/s.
    connections : int
        To be set.
    """

    host: str
    prepipe: str
    free_bytes: int
    opening_s: float
    steps: tuple[Step, ...]
    notices: tuple[str, ...]
    rate: float
    connections: int


def try_link(
    settings: config.Link,
    seconds: float,
    counts: Sequence[int],
    on_step: Callable[[Step], object] = lambda _: None,
) -> Trial:
    """Measure a link with more and more connections.

    Parameters
    ----------
    settings : config.Link
        Of kind ssh; its rate and number of connections are not looked at.
    seconds : float
        For each number of connections, s.
    counts : sequence of int
        Numbers of connections to try, 1 to 64; the first that does not open in full is the last.
    on_step : callable, optional
        Told of each step when it is done.

    Raises
    ------
    LinkError
        If the far side cannot be reached or does not take packets.
    """
    notices: list[str] = []
    steps: list[Step] = []
    opening_s = 0.0
    far_end = Welcome(0)
    with _noise() as noise:
        for count in counts:
            tried = settings.model_copy(
                update={"connections": count, "rate": _rate_for(count, steps)}
            )
            link = SshLink(tried, lambda text: None if text in notices else notices.append(text))
            try:
                took_s, far_end = _open_all(link, count)
                opening_s = opening_s or took_s
                opened = _open_ones(link)
                steps.append(_measure(link, opened, noise, seconds))
            finally:
                link.close()
            on_step(steps[-1])
            if opened < count:
                notices.append(f"only {opened} of {count} connections could be opened")
                break
    return _conclude(far_end, opening_s, steps, notices)


def _rate_for(count: int, steps: Sequence[Step]) -> float:
    """To what rate so many connections are paced, Mbit/s: `link.rate` is yet to be found out."""
    if not steps:
        return _UNPACED
    last = steps[-1]
    return max(_ROOM * last.mbit_s / last.connections * count, 1.0)


def _conclude(
    far_end: Welcome, opening_s: float, steps: Sequence[Step], notices: Sequence[str]
) -> Trial:
    """What the steps say together."""
    best = max(step.mbit_s for step in steps)
    rate = round(best * HEADERS, 1 if best < 100 else 0)
    enough = min(step.connections for step in steps if step.mbit_s >= _ENOUGH * best)
    return Trial(
        host=far_end.host,
        prepipe=far_end.prepipe,
        free_bytes=far_end.free_bytes,
        opening_s=opening_s,
        steps=tuple(steps),
        notices=tuple(notices),
        rate=rate,
        connections=max(enough, connections_for(rate)),
    )


@contextmanager
def _noise() -> Iterator[Path]:
    """A file that no compression makes smaller."""
    with tempfile.TemporaryDirectory(prefix="prepipe-") as directory:
        path = Path(directory) / _NAME
        path.write_bytes(os.urandom(_FILE_BYTES))
        yield path


def _open_all(link: SshLink, count: int) -> tuple[float, Welcome]:
    """Wait until all connections are open; how long the first took, s, and who is there."""
    began = time.monotonic()
    link.wait_open()
    first_s = time.monotonic() - began
    until = time.monotonic() + _PATIENCE_S
    while _open_ones(link) < count and time.monotonic() < until:
        time.sleep(_LOOK_S)
    far_end = link.state().far_end
    if far_end is None or not _open_ones(link):
        raise LinkError("the connection broke while it was tried; try it again")
    return first_s, far_end


def _open_ones(link: SshLink) -> int:
    return sum(each.state == State.OPEN for each in link.state().connections)


def _measure(link: SshLink, opened: int, noise: Path, seconds: float) -> Step:
    """Fill the link for so long; what counts is the most that it carried in half of the time."""
    until = time.monotonic() + seconds
    # what the windows take at once, and as much again that waits
    files = 2 + opened * 2 * _WIDEST_BYTES // _FILE_BYTES
    with ThreadPoolExecutor(files) as threads:
        sending = [threads.submit(_keep_sending, link, noise, until) for _ in range(files)]
        samples = [_carried(link)]
        while time.monotonic() < until:
            time.sleep(_LOOK_S)
            samples.append(_carried(link))
        state = link.state()
        # what is under way need not arrive: on a slow line that would take long
        link.close()
        for each in sending:
            each.result()
    return _step(state, opened, _best_mbit_s(samples, seconds / 2))


def _step(state: LinkState, opened: int, mbit_s: float) -> Step:
    rtts = [each.rtt_s for each in state.connections if each.rtt_s]
    if not rtts:
        raise LinkError("the line broke while it was tried; try it again")
    known = [each.socket for each in state.connections if each.socket is not None]
    segments = sum(each.segments for each in known)
    return Step(
        opened,
        mbit_s,
        sum(each.retransmitted for each in known) / segments if segments else None,
        min((each.least_rtt_s for each in known if each.least_rtt_s), default=min(rtts)),
    )


def _keep_sending(link: SshLink, noise: Path, until: float) -> None:
    """Send until it is time; a link that is closed then is no error."""
    try:
        while time.monotonic() < until:
            link.send_in_vain(noise)
    except LinkError:
        if time.monotonic() < until:
            raise


def _carried(link: SshLink) -> tuple[float, int]:
    return time.monotonic(), sum(each.sent_bytes for each in link.state().connections)


def _best_mbit_s(samples: Sequence[tuple[float, int]], spell_s: float) -> float:
    """The most that was carried over so long, of what was carried when.

    Long enough that it does not count how many chunks happen to arrive at once.
    """
    best = 0.0
    ends = iter(samples)
    now, count = next(ends)
    for began, before in samples:
        while now - began < spell_s:
            if (end := next(ends, None)) is None:
                return best
            now, count = end
        best = max(best, 8e-6 * (count - before) / (now - began))
    return best

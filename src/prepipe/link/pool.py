"""Keeps a link's connections open all night; one thread looks after them.

It opens what is missing, gives a silent one's chunks to the others, closes it when another has
taken its place, and says so when waiting is vain.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from prepipe import config
from prepipe.errors import LinkError, PrepipeError, StorageError
from prepipe.link import openssh
from prepipe.link.connection import Connection, State, our_fault
from prepipe.link.dealer import Dealer, Transfer
from prepipe.link.openings import Openings
from prepipe.link.protocol import CHUNK_BYTES
from prepipe.link.speed import Speed
from prepipe.link.tuning import Tuning

__all__ = ["Pool"]

_TICK_S = 0.1
_SILENT_S = 3.0
_HEARD_S = 1.0
_TRUSTED_S = 5.0
_SKEW_S = 5.0
_GOODBYE_S = 1.0
_ALIVE = 5, 6
"""ssh gives a connection up after 30 s without an answer."""
_FEW_TRIES = 3
_LONGEST_PAUSE_S = 30.0
_AT_REST_S = 1.0
_WARM_UP_S = 2.0
_EXPECTED_S = 10.0


class Pool:
    """The connections of a link.

    Parameters
    ----------
    settings : config.Link
    dealer : Dealer
    tuning : Tuning
    notice : callable
        Told what cannot be had and what is done instead: a keyword, and a sentence.

    Attributes
    ----------
    connections : tuple of Connection
        Those that are not over.
    trouble : str
        What went wrong last, in a sentence; empty once one is open again.
    speed : Speed
        Of `acknowledged_bytes`.
    """

    def __init__(
        self,
        settings: config.Link,
        dealer: Dealer,
        tuning: Tuning,
        notice: Callable[[str, str], object],
    ) -> None:
        self._settings = settings
        self._dealer = dealer
        self._tuning = tuning
        self._notice = notice
        self._where = openssh.where(settings)
        self._cipher: list[str] | None = None
        self._openings = Openings(settings.timeout_s)
        self._attention = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._welcomed: set[Connection] = set()
        self._past_bytes = 0
        self._shared = False
        self._warm = False
        self._down_since = float("-inf")
        self._verdict_at = float("-inf")
        self._broken = ""
        self._busy_at = float("-inf")
        self.speed = Speed()
        self.connections: tuple[Connection, ...] = ()
        self.trouble = ""

    def open(self) -> None:
        """Begin to connect, if that has not begun; nothing is waited for."""
        with self._starting:
            if self._thread is None and not self._closing.is_set():
                self._down_since = time.monotonic()
                self._thread = threading.Thread(target=self._run, name="link", daemon=True)
                self._thread.start()

    def prepare(self) -> None:
        """Connect, and have connections up to speed for what comes within the next 10 s.

        Without BBR one that idles for half a second begins anew, and at 240 ms takes five round
        trips to its full speed.
        """
        self.open()
        if any(each.is_forgetful for each in self.healthy()):
            self._make_noise(_EXPECTED_S)

    def _make_noise(self, seconds: float) -> None:
        if self._tuning.starts_slowly:
            self._dealer.make_noise(seconds)

    def close(self) -> None:
        """Close all connections; those that do not end by themselves soon are killed."""
        with self._starting:
            self._closing.set()
        self._dealer.give_up(self.why_give_up)
        self._attention.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        for each in self.connections:
            each.leave()
        until = time.monotonic() + _GOODBYE_S
        for each in self.connections:
            each.wait(until)
        for each in self.connections:
            each.abandon()
        for each in self.connections:
            each.wait(until + _GOODBYE_S)

    @property
    def is_closed(self) -> bool:
        """Whether nothing will be sent any more."""
        return self._closing.is_set()

    @property
    def acknowledged_bytes(self) -> int:
        """Over all connections there ever were."""
        return self._past_bytes + sum(each.acknowledged_bytes for each in self.connections)

    def healthy(self) -> list[Connection]:
        """Connections that are open and heard, as of this moment."""
        return [each for each in self.connections if each.state is State.OPEN]

    def wake(self) -> None:
        """Connections may have something to do."""
        for each in self.connections:
            each.wake()

    def why_vain(self, since: float) -> str:
        """Why it is vain to wait any longer, in a sentence; empty if it is not.

        Parameters
        ----------
        since : float
            When the wait began, s.
        """
        if self._closing.is_set():
            return f"{self._where}: the link was closed"
        if self._broken:
            return f"{self._where}: {self._broken}"
        if self.healthy():
            return ""
        down_s = time.monotonic() - max(since, self._down_since)
        if self._verdict_at >= since or down_s > self._settings.timeout_s:
            return f"{self._where}: {self.trouble or self._no_answer(down_s)}"
        return ""

    def _no_answer(self, seconds: float) -> str:
        return (
            f"no prepipe has answered there within {seconds:.0f} s; see whether the network is up, "
            f"and what `ssh {self._where}` says"
        )

    def why_give_up(self, transfer: Transfer) -> PrepipeError | None:
        """Why a file will not get there; None if it may."""
        patience_s = self._settings.timeout_s
        whole_s = time.monotonic() - transfer.whole_since
        if whole_s > patience_s:
            text = (
                f"{self._where}: all of {transfer.offer.name} is there, but for {whole_s:.0f} s it "
                "was not verified and committed; see the disk of the landing directory"
            )
            # where others are, long after it was whole, the disk is not to blame
            alone = self._dealer.committed_at > transfer.whole_since + patience_s / 2
            return StorageError(text) if alone else LinkError(text)
        told = self.why_vain(transfer.added)
        return LinkError(told) if told else None

    def _run(self) -> None:
        faults = 0
        while not self._closing.is_set():
            try:
                self._look_after()
            except Exception as error:
                faults += 1
                self._note_fault(our_fault(error), faults)
            else:
                faults, self._broken = 0, ""
                self._attention.wait(_TICK_S)
                self._attention.clear()

    def _note_fault(self, fault: str, faults: int) -> None:
        """What may pass (no memory, no threads) is tried again, as a line that is down."""
        self._notice("fault", f"{self._where}: {fault}")
        if not self.healthy() or faults >= _FEW_TRIES:
            # nobody looks after the connections
            self._broken = fault
            self._dealer.give_up(self.why_give_up)
        self._closing.wait(min(2.0 ** min(faults - 1, 10), _LONGEST_PAUSE_S))

    def _look_after(self) -> None:
        now = time.monotonic()
        self.speed.note(now, self.acknowledged_bytes)
        for each in self.connections:
            self._look_at(each, now)
        self._retire_surplus(now)
        healthy = self.healthy()
        self._tuning.share_out(healthy)
        complete = len(healthy) >= self._tuning.wanted
        self._tuning.follow(now, self.acknowledged_bytes, complete=complete)
        if complete and not self._warm:
            # else the first exposure would do it
            self._warm = True
            self._make_noise(_WARM_UP_S)
        self._replace_worn(now)
        self._open_what_is_missing(now, len(healthy))
        self._note_whether_down(now, bool(healthy))
        self._dealer.give_up(self.why_give_up)

    def _look_at(self, connection: Connection, now: float) -> None:
        match connection.state:
            case State.OVER:
                self._note_end(connection, now)
            case State.OPENING:
                limit_s = self._openings.limit_s
                if now - connection.began > limit_s:
                    connection.give_up(self._no_answer(limit_s))
            case State.OPEN if connection not in self._welcomed:
                self._note_open(connection)
            case State.OPEN if connection.silent_s() > self._patience_s(connection):
                connection.pause()
            case State.LEAVING if connection.silent_s() > self._patience_s(connection):
                connection.abandon()

    def _patience_s(self, connection: Connection) -> float:
        """How long an answer may take: a lost packet, and on a slow line a chunk, take theirs."""
        chunk_s = CHUNK_BYTES / connection.share if connection.share else 0.0
        return max(_SILENT_S, 8 * connection.least_rtt_s, 4 * chunk_s)

    def _note_open(self, connection: Connection) -> None:
        self._welcomed.add(connection)
        now = time.monotonic()
        self._openings.note_opened(now, connection.opened_at - connection.began)
        self.trouble = ""
        self._tuning.begin(connection)
        self._look_at_landing(connection)
        self._compare_clocks(connection)

    def _look_at_landing(self, connection: Connection) -> None:
        """Say at once what else the first exposure of the night would find out."""
        if connection.welcome is not None and not connection.welcome.free_bytes:
            landing = self._settings.landing
            self._notice(
                "landing",
                f"{self._where}: prepipe answers, but no packet can land in {landing} now: it is "
                f"missing, full or not to be read; there, `prepipe receive --landing {landing} "
                "--check` says which",
            )

    def _compare_clocks(self, connection: Connection) -> None:
        ahead_s = connection.skew_s
        if abs(ahead_s) > _SKEW_S:
            self._notice(
                "clock",
                f"the clock of {self._where} is {abs(ahead_s):.0f} s "
                f"{'ahead' if ahead_s > 0 else 'behind'}: latencies will be wrong; see that both "
                "ends keep time (chrony, ntpd)",
            )

    def _retire_surplus(self, now: float) -> None:
        """Enough are healthy: those that are silent, or came too late, are not needed.

        One that has just been heard again may fall silent again at once, for its kernel has to
        find its way back: so long what is being opened in its place goes on.
        """
        wanted = self._tuning.wanted
        healthy = sorted(
            self.healthy(), key=lambda each: (now - each.last_heard > _HEARD_S, each.opened_at)
        )
        if len(healthy) < wanted:
            return
        for each in healthy[wanted:]:
            each.leave()
        unneeded = [State.SILENT]
        if all(now - each.revived_at > _TRUSTED_S for each in healthy):
            unneeded.append(State.OPENING)
        for each in self.connections:
            if each.state in unneeded:
                each.abandon()

    def _replace_worn(self, now: float) -> None:
        """Between two exposures, change connections that have lost many packets for fresh ones.

        Without BBR each loss takes a third or half of what a connection dares to have under way,
        and at 240 ms it takes minutes to recover; a fresh one doubles it every round trip.
        """
        if self._dealer.makes_noise or not self._dealer.is_empty:
            self._busy_at = now
        healthy = self.healthy()
        if now - self._busy_at < _AT_REST_S or len(healthy) < self._tuning.wanted:
            return
        for each in [each for each in healthy if each.is_worn][: (len(healthy) + 1) // 2]:
            each.leave()

    def _open_what_is_missing(self, now: float, healthy: int) -> None:
        opening = sum(each.state is State.OPENING for each in self.connections)
        missing = self._tuning.wanted - healthy - opening
        if not self._openings.is_time(now, missing, opening, healthy):
            return
        self._openings.note_begun(now)
        try:
            fresh = Connection(self._command(), self._where, self._dealer, self._attention.set)
        except LinkError as error:
            self._note_failure(now, now, str(error), passing=True)
        else:
            self.connections = (*self.connections, fresh)

    def _command(self) -> list[str]:
        options = openssh.base_options(self._settings, self._openings.connect_s, *_ALIVE)
        if self._cipher is None:
            self._cipher = openssh.cipher_options(self._settings)
        options += [*openssh.pool_options(shared=self._shared), *self._cipher]
        return ["ssh", *options, "--", self._settings.host, openssh.far_command(self._settings)]

    def _note_end(self, connection: Connection, now: float) -> None:
        self.connections = tuple(each for each in self.connections if each is not connection)
        self._past_bytes += connection.acknowledged_bytes
        self._welcomed.discard(connection)
        if connection.is_unwanted:
            return
        ending = connection.ending
        told = ending.told(self._where)
        if connection.opened_at:
            self._note_loss(connection, now, told)
        elif not (ending.wants_login and self._share_users_own()):
            self._note_failure(now, connection.began, told, ending.is_passing)

    def _note_loss(self, connection: Connection, now: float, told: str) -> None:
        self._openings.note_lost(now, connection.opened_at)
        if not self.healthy():
            self.trouble = told
        if connection.ending.fault:
            self._notice("fault", f"{self._where}: {told}; a new connection is opened")

    def _note_failure(self, now: float, began: float, told: str, passing: bool) -> None:
        healthy = len(self.healthy())
        # the line is up and the server takes no more: that does not pass so soon
        is_news = self._openings.note_failed(now, began, passing and not healthy)
        if not healthy:
            self.trouble = told
            if not (passing and self._openings.ever):
                self._verdict_at = now
        elif is_news and self._openings.failures == _FEW_TRIES:
            self._notice(
                "fewer",
                f"{self._where}: only {healthy} of {self._tuning.wanted} connections can be "
                f"opened: {told}",
            )

    def _share_users_own(self) -> bool:
        """Where only the user's own open connection gets in, go through that one."""
        if self._shared or not openssh.has_shared_connection(self._settings):
            return False
        self._shared = True
        self._tuning.share_one()
        self._notice(
            "shared",
            f"{self._where}: only your own shared connection (ControlMaster) gets in; all packets "
            "go through that one, which is slower",
        )
        return True

    def _note_whether_down(self, now: float, up: bool) -> None:
        if up:
            self._down_since = float("inf")
        elif self._down_since == float("inf"):
            self._down_since = now

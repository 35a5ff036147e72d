"""What the far side holds, asked for in a thread of its own: packing does not wait for a line."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from prepipe.errors import LinkError, PrepipeError
from prepipe.link.base import Held, Link
from prepipe.telescope.report import unexpected

__all__ = ["FarSide"]


class FarSide:
    """The packets at the far side; a context manager, within which it can be asked.

    Parameters
    ----------
    link : Link
    since : int
        Of exposures with lower numbers nothing need be known.

    Attributes
    ----------
    answered : int
        How often it has answered; before the first time nothing is known.
    """

    def __init__(self, link: Link, since: int = 0) -> None:
        self.answered = 0
        self._link = link
        self._since = since
        self._wanted = 0
        self._question: Future[dict[str, Held]] | None = None
        self._held: dict[str, Held] = {}
        self._sent_since: dict[str, Held] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> FarSide:
        self._thread = ThreadPoolExecutor(1, "ask")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._thread.shutdown()

    @property
    def held(self) -> Mapping[str, Held]:
        """What it held when it last answered, by name, and what was sent since."""
        return self._held

    @property
    def question(self) -> Future[dict[str, Held]] | None:
        """The question under way."""
        return self._question

    @property
    def is_wanted(self) -> bool:
        """Whether an answer is wished for that has not come."""
        return self._wanted > self.answered

    def want(self) -> int:
        """Wish for an answer to a question that is yet to be asked.

        Returns
        -------
        int
            What `answered` will have reached when it is there.
        """
        # one under way may have been answered in part before now
        self._wanted = max(self._wanted, self.answered + (1 if self._question is None else 2))
        return self._wanted

    def look(self, *, may_ask: bool) -> None:
        """Take an answer that has come, and ask what is wished for.

        Raises
        ------
        LinkError
            If the far side could not be asked; the wish stays.
        """
        if self._question is not None and self._question.done():
            question, self._question = self._question, None
            self._take(question)
        if may_ask and self._question is None and self.is_wanted:
            with self._lock:
                self._sent_since = {}
            self._question = self._thread.submit(self._link.inventory, self._since)

    def note(self, name: str, held: Held) -> None:
        """Note that a packet was sent; for any thread."""
        with self._lock:
            self._sent_since[name] = held
            self._held[name] = held

    def _take(self, question: Future[dict[str, Held]]) -> None:
        try:
            answer = question.result()
        except PrepipeError:
            raise
        except Exception as error:
            raise LinkError(f"the far side cannot be asked: {unexpected(error)}") from error
        with self._lock:
            self._held = {**answer, **self._sent_since}
        self.answered += 1

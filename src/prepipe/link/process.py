"""An ssh process: bytes go in and come out, and what it complains of is kept in bounds."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress

from prepipe.errors import LinkError

__all__ = ["Process"]

_READ_BYTES = 1 << 17
_COMPLAINT_BYTES = 1 << 13
_ENDLESS_S = 2.0


class Process:
    """A child that one thread reads from and another writes to.

    Parameters
    ----------
    command : sequence of str
        Program and arguments; no shell sees them.

    Raises
    ------
    LinkError
        If it cannot be started.
    """

    def __init__(self, command: Sequence[str]) -> None:
        try:
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                env={**os.environ, "LC_ALL": "C"},
                # Ctrl-C stops the one who waits, not a packet under way
                start_new_session=True,
            )
        except OSError as error:
            raise LinkError(f"{command[0]} cannot be started: {error.strerror}") from error
        assert self._child.stdin and self._child.stdout and self._child.stderr
        self._input, self._output, self._errors = (
            self._child.stdin,
            self._child.stdout,
            self._child.stderr,
        )
        self._said = b""
        os.set_blocking(self._errors.fileno(), False)
        self._poll = select.poll()
        self._poll.register(self._output, select.POLLIN)
        self._poll.register(self._errors, select.POLLIN)

    @property
    def id(self) -> int:
        """Its number."""
        return self._child.pid

    def read(self) -> bytes:
        """What came, as soon as something does; empty at the end."""
        output, errors = self._output.fileno(), self._errors.fileno()
        while True:
            ready = [descriptor for descriptor, _ in self._poll.poll()]
            if errors in ready and not self._listen_to_complaints():
                self._poll.unregister(errors)
            if output in ready:
                return os.read(output, _READ_BYTES)

    def _listen_to_complaints(self) -> bool:
        """Keep the end of what it says; False once it says no more."""
        try:
            said = os.read(self._errors.fileno(), _READ_BYTES)
        except BlockingIOError:
            return True
        self._said = (self._said + said)[-_COMPLAINT_BYTES:]
        return bool(said)

    def write(self, data: memoryview) -> None:
        """Write all; waits while it takes no more.

        Raises
        ------
        OSError
            If it is gone.
        """
        while data:
            data = data[os.write(self._input.fileno(), data) :]

    def hang_up(self) -> None:
        """Write no more; for the thread that writes, whose descriptor this is."""
        with suppress(OSError):
            self._input.close()

    def kill(self) -> None:
        """End it now, with all that it started (the ssh of a ProxyJump), waiting for none."""
        with suppress(OSError):
            if self._child.returncode is None:
                # its session is its own
                os.killpg(self._child.pid, signal.SIGKILL)

    def reap(self) -> int:
        """Wait for the end of one that has nothing more to tell; for the thread that reads.

        Returns
        -------
        int
            Exit code; negative after a signal.
        """
        try:
            # it has closed its output: it is about to end by itself, with a code that tells why
            code = self._child.wait(_ENDLESS_S)
        except subprocess.TimeoutExpired:
            self.kill()
            code = self._child.wait()
        with suppress(OSError, BlockingIOError):
            # whoever was started in the background may hold the other end
            while self._pending_complaints() and self._listen_to_complaints():
                pass
        self._output.close()
        self._errors.close()
        return code

    def _pending_complaints(self) -> bool:
        return bool(select.select([self._errors], [], [], 0)[0])

    @property
    def complaint(self) -> str:
        """The end of what it wrote to its standard error."""
        return self._said.decode("utf-8", "replace")

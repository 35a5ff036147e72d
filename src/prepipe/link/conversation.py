"""A conversation with one ``sftp`` process: commands go in, their answers come out."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from prepipe.errors import LinkError

__all__ = ["Conversation", "quoted"]

_ECHO = "sftp> "
_MARK = "pwd"
"""Answered without asking the far side, so that it tells where other answers end."""
_CONNECTION_LOST = 255


def quoted(path: str) -> str:
    """`path` as one word of an sftp command."""
    escaped = path.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


class Conversation:
    """One ``sftp -b -``, fed step by step; a context manager.

    A step is given only when the one before was answered, so that nothing goes on at the
    far side when this process is killed. sftp stops at the first command that fails.

    Parameters
    ----------
    command : sequence of str
        Program and arguments; no shell sees them.
    limit_s : float
        The process is killed when it takes longer, s.
    directory : Path, optional
        Where relative local names are taken from.
    """

    def __init__(
        self, command: Sequence[str], limit_s: float, directory: Path | None = None
    ) -> None:
        self.limit_s = limit_s
        self.timed_out = False
        self.complaint = ""
        # not a pipe: a connection kept open in the background would hold its other end
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                cwd=directory,
                env={**os.environ, "LC_ALL": "C"},
                # Ctrl-C stops the one who waits for it, not a packet under way
                start_new_session=True,
                encoding="utf-8",
                errors="replace",
            )
        except OSError as error:
            self._errors.close()
            raise LinkError(f"sftp cannot be started: {error.strerror}") from error
        self._timer = threading.Timer(limit_s, self._give_up)
        self._timer.daemon = True
        self._timer.start()

    def __enter__(self) -> Conversation:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.finish()
        self._errors.close()

    @property
    def disconnected(self) -> bool:
        """Whether the connection failed, rather than a command."""
        return self.timed_out or self._process.returncode not in (0, 1)

    def ask(self, steps: Sequence[str]) -> list[str]:
        """Give some commands and wait for their answers.

        Returns
        -------
        list of str
            Lines of output, without the commands; short if one of them failed.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(OSError, ValueError):
            self._process.stdin.write("".join(f"{step}\n" for step in (*steps, _MARK)))
            self._process.stdin.flush()
        lines: list[str] = []
        marked = False
        for line in self._process.stdout:
            if marked:
                break
            if line.startswith(_ECHO):
                marked = line.removeprefix(_ECHO).strip() == _MARK
            else:
                lines.append(line.rstrip("\n"))
        return lines

    def finish(self) -> bool:
        """Say goodbye; True if every command succeeded."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            with suppress(OSError):
                self._process.stdin.close()
            if self._process.stdout is not None:
                self._process.stdout.read()
                self._process.stdout.close()
            self._process.wait()
            self._timer.cancel()
            self._errors.seek(0)
            self.complaint = self._errors.read().decode("utf-8", "replace")
        return self._process.returncode == 0

    def abandon(self) -> None:
        """End it now, whatever is under way; for another thread than the one that talks."""
        self._kill()

    def _kill(self) -> None:
        """sftp, its ssh, and that of a ProxyJump: the session is their own."""
        with suppress(OSError):
            if self._process.returncode is None:
                os.killpg(self._process.pid, signal.SIGKILL)

    def _give_up(self) -> None:
        if self._process.poll() is None:
            self.timed_out = True
            self._kill()

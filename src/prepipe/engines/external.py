"""What all external pipelines share: files for them, a program's run, its surroundings and log.

An engine of this kind puts the raw CCD where its pipeline looks for it (`raw_file`,
`plain_raw_file`), runs programs (`run_program`) in an environment of their own
(`sourced_environment`, `own_directories`), and copies what they made to its final name
(`copy_product`). What a program leaves half done stays below the scratch directory.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from prepipe.codec.cards import keyword_of, split_cards
from prepipe.codec.plain_image import plain_file
from prepipe.codec.unpack import unpack
from prepipe.compute.scratch import scratch_directory, scratch_root
from prepipe.engines import guard
from prepipe.engines.base import Order, Outcome
from prepipe.engines.raw import RawCcd
from prepipe.errors import ConfigError, EngineError, StorageError
from prepipe.files import atomic_path, atomic_write, storage_errors
from prepipe.model import Reduction
from prepipe.quality.grades import grade, limits_for

__all__ = [
    "Ran",
    "copy_product",
    "graded",
    "log_tail",
    "own_directories",
    "plain_raw_file",
    "program_path",
    "raw_file",
    "run_program",
    "scratch_of",
    "sourced_environment",
]

TAIL_LINES = 12
TAIL_CHARACTERS = 1200
SOURCE_LIMIT_S = 60.0

_STRUCTURE = re.compile(
    r"SIMPLE|XTENSION|BITPIX|NAXIS\d*|PCOUNT|GCOUNT|EXTEND|INHERIT|BSCALE|BZERO|CHECKSUM|DATASUM"
)
_TAIL_BYTES = 1 << 14
_SOURCE = 'source "$1" >&2 && env -0'


@dataclass(frozen=True)
class Ran:
    """How a program ended.

    Parameters
    ----------
    program : str
        Its name, without directories.
    status : int
        Exit status; 128 and more for a signal.
    log : Path
        All that it wrote.
    """

    program: str
    status: int
    log: Path

    @property
    def tail(self) -> str:
        """The end of its log."""
        return log_tail(self.log)

    def says(self, text: str) -> bool:
        """Whether its log holds a text, whatever the case of its letters."""
        with storage_errors(self.log):
            return text.lower() in self.log.read_text(errors="replace").lower()

    def failure(self, what: str) -> EngineError:
        """An error about it that ends with its log's tail."""
        return EngineError(f"{self.program} {what}; the end of its log: {self.tail}")


@contextmanager
def scratch_of(order: Order) -> Iterator[Path]:
    """The order's own directory on the node's disk; a temporary one if it has none.

    What killed workers left of temporary ones is removed with the next.

    Raises
    ------
    StorageError
        If the order's own cannot be made.
    PlaceLostError
        If a temporary one cannot be made.
    """
    if order.scratch is None:
        with scratch_directory(scratch_root(tempfile.gettempdir())) as directory:
            yield directory
        return
    with storage_errors(order.scratch):
        order.scratch.mkdir(parents=True, exist_ok=True)
    yield order.scratch


def raw_file(order: Order, directory: Path) -> Path:
    """The order's raw file as the telescope wrote it, for pipelines that want that.

    A packet is unpacked to a file with its primary HDU and one extension; a raw file is linked,
    whole as it is.

    Parameters
    ----------
    order : Order
    directory : Path
        Where it goes.

    Raises
    ------
    PacketError
        If the packet is damaged.
    StorageError
    """
    if order.hdu is None:
        return unpack(order.source, directory)
    link = directory / order.source.name
    with storage_errors(link):
        directory.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(order.source.resolve())
    return link


def plain_raw_file(raw: RawCcd, path: Path) -> None:
    """Write a raw CCD as a FITS file of one image with all its cards, for pipelines split by CCD.

    The primary header's cards follow the extension's where that has none of their name, and the
    pixels are not compressed.

    Raises
    ------
    StorageError
    """
    header = raw.header.tostring().encode("ascii", "replace")
    cards = [card for card in split_cards(header) if not _STRUCTURE.fullmatch(keyword_of(card))]
    with atomic_write(path) as stream:
        stream.write(plain_file(raw.pixels, cards))


def sourced_environment(script: Path) -> dict[str, str]:
    """What the environment is after bash has sourced a file; asked once of each version of it.

    Parameters
    ----------
    script : Path

    Raises
    ------
    ConfigError
        If the file is missing, fails or hangs.
    """
    try:
        changed_ns = script.stat().st_mtime_ns
    except OSError as error:
        raise ConfigError(
            f"{script} cannot be sourced: {error.strerror}; give the path of the file that sets "
            "the pipeline's environment"
        ) from error
    return dict(_sourced(script, changed_ns))


@lru_cache(maxsize=4)
def _sourced(script: Path, _changed_ns: int) -> Mapping[str, str]:
    words = ["bash", "-c", _SOURCE, "bash", str(script)]
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SOURCE_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"{script} cannot be sourced: {error}") from error
    if done.returncode:
        told = " ".join(done.stderr.decode(errors="replace").split())[-TAIL_CHARACTERS:]
        raise ConfigError(f"{script}: sourcing it in bash failed ({told or done.returncode})")
    pairs = (os.fsdecode(entry).partition("=") for entry in done.stdout.split(b"\0") if entry)
    return {name: value for name, _, value in pairs}


def own_directories(scratch: Path) -> dict[str, str]:
    """Variables that keep a program's settings and caches to one order.

    Programs that run at the same time have been seen to corrupt a shared astropy.cfg.

    Parameters
    ----------
    scratch : Path
        The order's own; the directories are made below it.

    Raises
    ------
    StorageError
    """
    places = {
        "XDG_CONFIG_HOME": scratch / "config",
        "XDG_CACHE_HOME": scratch / "cache",
        "XDG_DATA_HOME": scratch / "share",
        "MPLCONFIGDIR": scratch / "config" / "matplotlib",
        "TMPDIR": scratch / "tmp",
    }
    with storage_errors(scratch):
        for place in places.values():
            place.mkdir(parents=True, exist_ok=True)
        for name in ("config", "cache"):
            # astropy takes XDG_CONFIG_HOME and XDG_CACHE_HOME only if its directory is there
            (scratch / name / "astropy").mkdir(exist_ok=True)
    return {name: str(place) for name, place in places.items()}


def program_path(program: str, environment: Mapping[str, str], setting: str) -> str:
    """The path of a program, looked for where an environment says.

    Parameters
    ----------
    program : str
        A path, or a name to be found on PATH.
    environment : mapping
    setting : str
        Which setting names it, for the message.

    Raises
    ------
    ConfigError
        If there is none that can be run.
    """
    found = shutil.which(program, path=environment.get("PATH", os.defpath))
    if found is None:
        raise ConfigError(
            f"{setting}: no program {program} can be run here; give its path, or an environment "
            "whose PATH leads to it"
        )
    return os.path.abspath(found)  # noqa: PTH100 (a link keeps its name: programs look at it)


def run_program(
    words: Sequence[str],
    *,
    log: Path,
    limit_s: float,
    environment: Mapping[str, str],
    directory: Path,
) -> Ran:
    """Run a program to its end; it and all it started die with this process or at its limit.

    No shell sees the words. The exit status is for the caller to judge, and so is whether the
    product is there.

    Parameters
    ----------
    words : sequence of str
        The program's path and its arguments.
    log : Path
        Its output and errors are appended here.
    limit_s : float
        It is killed after so many seconds.
    environment : mapping
        All of its environment.
    directory : Path
        Where it runs.

    Raises
    ------
    ConfigError
        If it cannot be started.
    EngineError
        If it was killed at its limit.
    StorageError
        If the log cannot be written.
    """
    name = Path(words[0]).name
    command = [sys.executable, "-I", "-S", guard.__file__, *words]
    with storage_errors(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        stream = log.open("ab")
    with stream:
        try:
            running = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=stream,
                stderr=stream,
                cwd=directory,
                env=dict(environment),
                start_new_session=True,
            )
        except OSError as error:
            raise StorageError(f"{name} could not be started: {error.strerror}") from error
    with running:
        status = _wait(running, limit_s)
    if status is None:
        raise EngineError(
            f"{name} took more than {limit_s:g} s and was killed; the end of its log: "
            f"{log_tail(log)}"
        )
    if status == guard.NOT_STARTED:
        raise ConfigError(f"{words[0]} cannot be run: {log_tail(log)}")
    return Ran(name, status, log)


def _wait(running: subprocess.Popen[bytes], limit_s: float) -> int | None:
    """The exit status; None if it had to be killed."""
    assert running.stdin is not None
    try:
        return running.wait(limit_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        # the guard ends the program's whole group once this pipe is closed
        running.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            running.wait(2 * guard.GRACE_S)
        running.kill()


def log_tail(log: Path) -> str:
    """The last lines of a log, as one line."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            text = stream.read().decode(errors="replace")
    except OSError:
        return "it wrote nothing"
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    told = " | ".join(lines[-TAIL_LINES:])
    printable = "".join(letter if letter.isprintable() else "?" for letter in told)
    return printable[-TAIL_CHARACTERS:] or "it wrote nothing"


def copy_product(made: Path, product: Path) -> None:
    """Copy what a pipeline made to its final name: whole, or not at all.

    Raises
    ------
    StorageError
    """
    with storage_errors(made), atomic_path(product) as partial:
        shutil.copyfile(made, partial)


def graded(order: Order, raw: RawCcd, reduction: Reduction) -> Outcome:
    """The outcome of an order, with the grade that its figures and flags deserve."""
    limits = limits_for(order.limits, raw.exposure.camera, raw.exposure.band)
    return Outcome(raw.exposure, raw.ccd, reduction, grade(reduction, limits))

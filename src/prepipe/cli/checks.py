"""What `prepipe doctor` looks at: one small function a check, each returning one `Check`."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from queue import Empty, SimpleQueue
from subprocess import DEVNULL, SubprocessError, run
from threading import Thread

import psutil

from prepipe import __version__, config
from prepipe.cli.output import counted, printable
from prepipe.config import Site
from prepipe.errors import LinkError, PrepipeError
from prepipe.link.base import Link

__all__ = ["CLUSTER", "TELESCOPE", "Check", "State", "all_checks"]

TELESCOPE = "telescope"
CLUSTER = "cluster"

LOW_SPACE_GB = 20.0
"""Some 30 raw exposures, or one hour of packets: below this a night may not fit."""
NO_SPACE_GB = 1.0
WORKER_GB = 0.6
"""Memory of one worker: the frame with its mask, weight and background, and the libraries."""
SKEW_S = 2.0
ANSWER_WITHIN_S = 20.0
LIBRARIES = (
    "numpy",
    "astropy",
    "fitsio",
    "imagecodecs",
    "numba",
    "parsl",
    "scipy",
    "SQLAlchemy",
    "alembic",
    "pydantic",
    "pyarrow",
    "xxhash",
    "zstandard",
)


class State(StrEnum):
    """How a check came out."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"


@dataclass(frozen=True)
class Check:
    """One line of the doctor's report.

    Parameters
    ----------
    name : str
        What was looked at.
    state : State
    found : str
        What was found.
    remedy : str
        What to do about it; empty if all is well.
    """

    name: str
    state: State
    found: str
    remedy: str = ""


def all_checks(site: Site, ends: Sequence[str]) -> list[Callable[[], Check]]:
    """The checks that a site needs, to be called one after the other.

    Parameters
    ----------
    site : Site
    ends : sequence of str
        Which ends run on this machine: ``"telescope"``, ``"cluster"`` or both.
    """
    checks: list[Callable[[], Check]] = [check_python, check_libraries, check_numba_cache]
    if TELESCOPE in ends:
        checks += _telescope_checks(site)
    if CLUSTER in ends:
        checks += _cluster_checks(site)
    return [*checks, lambda: check_camera(site.camera)]


def _telescope_checks(site: Site) -> list[Callable[[], Check]]:
    own = site.telescope
    checks: list[Callable[[], Check]] = [
        lambda: check_readable("telescope.raw", own.raw),
        lambda: check_raw_files(own.raw, own.pattern),
        lambda: check_writable("telescope.work", own.work),
        lambda: check_space("telescope.work", own.work),
        lambda: check_clock("telescope.work", own.work),
        lambda: check_journal("telescope", own),
        lambda: check_codec(site),
        lambda: check_workers("pack.workers", site.pack.workers),
    ]
    if (share := own.share) is not None:
        checks.append(lambda: check_writable("telescope.share", share))
    if site.link.kind != "local":
        checks.append(check_ssh_tools)
    return [*checks, lambda: check_link(site)]


def _cluster_checks(site: Site) -> list[Callable[[], Check]]:
    own = site.cluster
    return [
        lambda: check_landing("cluster.landing", own.landing),
        lambda: check_writable("cluster.work", own.work),
        lambda: check_space("cluster.work", own.work),
        lambda: check_writable("cluster.products", own.products, own.work),
        lambda: check_space("cluster.products", own.products),
        lambda: check_clock("cluster.work", own.work),
        lambda: check_journal("cluster", own),
        *_own_workers(site),
        *_engine_checks(site),
    ]


def _own_workers(site: Site) -> list[Callable[[], Check]]:
    if site.compute.place != "local":
        return []
    return [lambda: check_workers("cluster.workers", site.cluster.workers)]


def _engine_checks(site: Site) -> list[Callable[[], Check]]:
    """What the built-in engine needs, or what another one says of itself."""
    if site.calibration.engine != "builtin":
        return [lambda: check_engine(site)]
    return [
        lambda: check_reference(site),
        lambda: check_masters(site.cluster.calibrations),
        lambda: check_detector(site),
    ]


def check_python() -> Check:
    """Which Python and prepipe these are."""
    found = f"Python {sys.version.split()[0]}, prepipe {__version__}"
    return Check("python", State.OK, found)


def check_libraries() -> Check:
    """Whether every library is installed."""
    known = {}
    for name in LIBRARIES:
        try:
            known[name] = version(name)
        except PackageNotFoundError:
            continue
    missing = [name for name in LIBRARIES if name not in known]
    found = ", ".join(f"{name} {number}" for name, number in known.items())
    if missing:
        remedy = f"install {' '.join(missing)} into {sys.prefix}"
        return Check("libraries", State.FAILURE, found, remedy)
    return Check("libraries", State.OK, found)


def check_numba_cache() -> Check:
    """Whether compiled kernels can be kept, so that they are compiled only once."""
    import prepipe

    asked = os.environ.get("NUMBA_CACHE_DIR")
    package = Path(prepipe.__file__).parent / "calibrate"
    wide = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "numba"
    for place in [Path(asked)] if asked else [package, wide]:
        if _can_write(_existing(place)):
            return Check("numba cache", State.OK, f"kept in {place}")
    remedy = "set NUMBA_CACHE_DIR to a directory that can be written"
    return Check("numba cache", State.WARNING, "every start compiles anew, 30 s", remedy)


def check_readable(name: str, directory: Path) -> Check:
    """Whether a directory is there and can be read."""
    try:
        with os.scandir(directory):
            return Check(name, State.OK, str(directory))
    except (FileNotFoundError, NotADirectoryError):
        remedy = f"make it, or set {name} to the right one"
        return Check(name, State.FAILURE, f"{directory}: no such directory", remedy)
    except OSError as error:
        remedy = f"give this user the right to read it: chmod or a group on {directory}"
        found = f"{directory} cannot be read: {error.strerror}"
        return Check(name, State.FAILURE, found, remedy)


def check_writable(name: str, directory: Path, below: Path | None = None) -> Check:
    """Whether files can be written in a directory, or the directory can be made.

    Where more than its last element is missing, a disk may not be mounted; not counted is what
    is missing below a directory, `below`, that prepipe makes itself.
    """
    place = _existing(directory)
    if not place.is_dir():
        remedy = f"set {name} to a directory"
        return Check(name, State.FAILURE, f"{place} is no directory", remedy)
    if not _can_write(place):
        remedy = f"give this user the right to write there, or set {name} to another one"
        return Check(name, State.FAILURE, f"{place} cannot be written", remedy)
    if place == directory:
        return Check(name, State.OK, str(directory))
    made = below if below is not None and directory.is_relative_to(below) else directory
    if not made.parent.exists():
        found = f"{directory}: of its path only {place} exists"
        remedy = f"mount its disk if one is missing; else make {directory.parent}"
        return Check(name, State.WARNING, found, remedy)
    return Check(name, State.OK, f"{directory}, will be made")


def check_landing(name: str, directory: Path) -> Check:
    """Whether packets can land in a directory, which is made only in one that is there."""
    parent = directory.parent
    if not parent.exists():
        remedy = "look whether its disk is mounted, or make it"
        return Check(name, State.FAILURE, f"{parent} does not exist", remedy)
    return check_writable(name, directory)


def check_raw_files(raw: Path, pattern: str) -> Check:
    """Whether raw exposures are there."""
    try:
        count = sum(1 for _ in raw.glob(pattern))
    except OSError as error:
        return Check("raw files", State.FAILURE, f"{raw}: {error.strerror}", "see telescope.raw")
    if count == 0:
        remedy = "well before the night; else look at telescope.raw and telescope.pattern"
        return Check("raw files", State.WARNING, f"none like {pattern} in {raw}", remedy)
    return Check("raw files", State.OK, f"{count} like {pattern}")


def check_space(name: str, directory: Path) -> Check:
    """Whether the disk below a directory has room for a night."""
    title = f"disk of {name}"
    try:
        free_gb = shutil.disk_usage(_existing(directory)).free / 1e9
    except OSError as error:
        return Check(title, State.FAILURE, f"{directory}: {error.strerror}", f"see {name}")
    return _judged_space(title, f"{free_gb:.1f} GB free", free_gb)


def _judged_space(title: str, found: str, free_gb: float) -> Check:
    if free_gb < NO_SPACE_GB:
        return Check(title, State.FAILURE, found, "free some space before the night")
    if free_gb < LOW_SPACE_GB:
        return Check(title, State.WARNING, found, "may not last for a night: free some space")
    return Check(title, State.OK, found)


def check_clock(name: str, directory: Path) -> Check:
    """Whether this machine's clock agrees with that of the file system, and is kept by NTP.

    A file server with another time makes files look finished that are not.
    """
    title = f"clock of {name}"
    try:
        with tempfile.NamedTemporaryFile(dir=_existing(directory), prefix=".prepipe-") as probe:
            written = Path(probe.name).stat().st_mtime
    except OSError as error:
        return Check(title, State.FAILURE, f"{directory}: {error.strerror}", f"see {name}")
    skew = written - time.time()
    kept = _kept_by_ntp()
    found = f"file system {skew:+.2f} s from this machine" + (
        "" if kept is None else f", {'kept' if kept else 'not kept'} by NTP"
    )
    if abs(skew) > SKEW_S:
        remedy = "let NTP (chrony, timesyncd) set this machine and its file server"
        return Check(title, State.WARNING, found, remedy)
    if kept is False:
        return Check(title, State.WARNING, found, "start chrony or timesyncd: latencies need it")
    return Check(title, State.OK, found)


def _kept_by_ntp() -> bool | None:
    if shutil.which("timedatectl") is None:
        return None
    command = ["timedatectl", "show", "--property=NTPSynchronized", "--value"]
    try:
        answer = run(command, capture_output=True, text=True, timeout=5, check=True).stdout
    except (OSError, SubprocessError):
        return None
    return {"yes": True, "no": False}.get(answer.strip())


def check_journal(end: str, own: config.Telescope | config.Cluster) -> Check:
    """Whether the journal of an end can be opened and written."""
    from prepipe.cli.journals import JOURNAL_NAME, journal_of
    from prepipe.store import Journal

    title, where = f"journal ({end})", journal_of(own)
    try:
        if isinstance(where, str) or where.exists():
            Journal(where).close()
            return Check(title, State.OK, str(where))
        with tempfile.TemporaryDirectory(dir=_existing(own.work), prefix=".prepipe-") as directory:
            Journal(Path(directory) / JOURNAL_NAME).close()
    except (PrepipeError, OSError) as error:
        remedy = f"look at {end}.work; SQLite needs a file system with locks"
        if own.journal:
            remedy = f"look at {end}.journal, the server, and the password in ~/.pgpass"
        return Check(title, State.FAILURE, str(error), remedy)
    return Check(title, State.OK, f"{where}, will be made")


def check_codec(site: Site) -> Check:
    """Whether the codec gives back a small frame of noise."""
    import numpy as np

    from prepipe.codec import get_codec

    pixels = np.random.default_rng(1).normal(1500, 10, (64, 64)).astype(np.uint16)
    try:
        encoded = get_codec(site.pack.codec).encode(pixels, site.pack.parameters)
    except PrepipeError as error:
        if site.pack.codec == "none":
            return Check("codec", State.OK, "none: the raw file's own bytes")
        return Check("codec", State.FAILURE, str(error), "look at the [pack] settings")
    ratio = pixels.nbytes / len(encoded.payload)
    return Check("codec", State.OK, f"{site.pack.codec}: packs noise {ratio:.1f} to 1")


def check_camera(name: str) -> Check:
    """Whether the camera is known."""
    from prepipe.cameras import load_camera

    try:
        camera = load_camera(name)
    except PrepipeError as error:
        return Check("camera", State.FAILURE, str(error), "set camera to decam or to a .toml file")
    return Check("camera", State.OK, f"{camera.name}: {len(camera.focal_plane())} CCDs")


def check_workers(name: str, workers: int) -> Check:
    """Whether cores and memory suffice for the workers."""
    cores = len(os.sched_getaffinity(0))
    memory_gb = psutil.virtual_memory().available / 1e9
    power = f"{counted(workers, 'worker')}, {counted(cores, 'core')}"
    found = f"{power}, {memory_gb:.1f} GB free"
    if workers > cores:
        return Check(name, State.WARNING, found, f"set {name} to {cores} or fewer")
    if workers * WORKER_GB > memory_gb:
        fitting = max(1, int(memory_gb / WORKER_GB))
        return Check(name, State.WARNING, found, f"memory is short: set {name} to {fitting}")
    return Check(name, State.OK, found)


def check_ssh_tools() -> Check:
    """Whether the programs of OpenSSH are installed."""
    missing = [tool for tool in ("ssh", "sftp") if shutil.which(tool) is None]
    if missing:
        remedy = "install the OpenSSH client (openssh-client)"
        return Check("ssh tools", State.FAILURE, f"no {' and no '.join(missing)}", remedy)
    return Check("ssh tools", State.OK, f"{shutil.which('ssh')}, {shutil.which('sftp')}")


def check_link(site: Site) -> Check:
    """Whether the landing directory at the far end answers."""
    if site.link.kind == "local":
        here = check_landing("link", site.link.landing)
        if here.state is not State.OK or not site.link.landing.exists():
            return here
    where = site.link.host if site.link.kind != "local" else str(site.link.landing)
    answers: SimpleQueue[Check | Exception] = SimpleQueue()
    # A link may hang for as long as its own timeout; the doctor does not wait so long.
    Thread(target=_ask_far_side, args=(site, answers), daemon=True).start()
    begun = time.monotonic()
    try:
        answer = answers.get(timeout=ANSWER_WITHIN_S)
    except Empty:
        remedy = f"try `ssh {where}` by hand; it must not ask for a password"
        found = f"{where}: no answer within {ANSWER_WITHIN_S:.0f} s"
        return Check("link", State.FAILURE, found, remedy)
    if isinstance(answer, Exception):
        remedy = "look at the [link] settings" + (
            f"; `ssh -oBatchMode=yes {where} true` must work" if site.link.kind != "local" else ""
        )
        return Check("link", State.FAILURE, str(answer), remedy)
    found = f"{where} answers in {time.monotonic() - begun:.1f} s, {answer.found}"
    return replace(answer, found=found)


def _ask_far_side(site: Site, answers: SimpleQueue[Check | Exception]) -> None:
    from prepipe.link import open_link

    try:
        link = open_link(site.link)
        try:
            answers.put(_what_it_says(site.link, link))
        finally:
            link.close()
    except Exception as error:
        answers.put(error)


def _what_it_says(settings: config.Link, link: Link) -> Check:
    """What the far side has; a pool is not asked for its inventory, which reads all packets."""
    from prepipe.link.ssh import SshLink

    if not isinstance(link, SshLink):
        return Check("link", State.OK, f"has {len(link.inventory())} packets")
    link.wait_open()
    far_end = link.state().far_end
    if far_end is None:
        raise LinkError("the connection broke while it was tried; try it again")
    _try_to_land(settings)
    free_gb = far_end.free_bytes / 1e9
    version_there = printable(far_end.prepipe)
    found = f"prepipe {version_there}, packets can land, {free_gb:,.1f} GB free there"
    return _judged_space("link", found, free_gb)


def _try_to_land(settings: config.Link) -> None:
    """Let the far end write a file where packets land."""
    from prepipe.link import openssh
    from prepipe.link.advice import sentence

    options = openssh.base_options(settings, ANSWER_WITHIN_S, 5, 3)
    options += openssh.pool_options(shared=True)
    what = f"{openssh.far_command(settings)} --check"
    command = ["ssh", *options, "--", settings.host, what]
    done = run(command, stdin=DEVNULL, capture_output=True, timeout=ANSWER_WITHIN_S, check=False)
    if done.returncode != 0:
        said = sentence(done.stderr.decode("utf-8", "replace")) or f"exit code {done.returncode}"
        raise LinkError(f"prepipe answers, but packets cannot land there: {said}")


def check_engine(site: Site) -> Check:
    """Whether the engine that is not built in can work here, by its own account."""
    from prepipe.engines.choice import open_engine

    title = f"engine {site.calibration.engine}"
    try:
        engine = open_engine(site)
    except PrepipeError as error:
        return Check(title, State.FAILURE, str(error), "look at calibration.engine")
    findings = engine.check() if engine.check is not None else ()
    faults = [finding for finding in findings if finding.remedy]
    if faults:
        found = "; ".join(finding.found for finding in faults)
        remedy = "; ".join(dict.fromkeys(finding.remedy for finding in faults))
        return Check(title, State.FAILURE, found, remedy)
    told = ", ".join(f"{finding.what} {finding.found}" for finding in findings)
    return Check(title, State.OK, told or "there; it tells no more")


def check_reference(site: Site) -> Check:
    """Whether the reference catalogue can be read and its columns are recognised."""
    from prepipe.engines.references.source import load_reference

    path = site.calibration.reference
    if path is None:
        remedy = "set calibration.reference to a star catalogue (ra, dec, magnitude)"
        return Check("reference stars", State.FAILURE, "none is set", remedy)
    if not path.exists():
        remedy = "look at calibration.reference; `prepipe refcat build` makes a large one"
        return Check("reference stars", State.FAILURE, f"{path} does not exist", remedy)
    try:
        stars = load_reference(path, columns=site.calibration.columns)
    except PrepipeError as error:
        remedy = "give a FITS, CSV or Parquet table, or set calibration.columns"
        return Check("reference stars", State.FAILURE, str(error), remedy)
    return Check(
        "reference stars", State.OK, f"{len(stars)} stars, magnitude {stars.band}, in {path}"
    )


def check_masters(calibrations: Path) -> Check:
    """Whether master biases and flats are there, and none waits for a person."""
    from prepipe.engines.detector.library import MasterLibrary

    counts = {
        kind: sum(1 for _ in calibrations.glob(f"ut*/*/{kind}.*.fits.fz"))
        for kind in ("bias", "domeflat")
    }
    found = f"{counts['bias']} biases, {counts['domeflat']} dome flats in {calibrations}"
    if not all(counts.values()):
        remedy = "make them with `prepipe make-cals`; without them no CCD is graded green"
        return Check("masters", State.WARNING, found, remedy)
    try:
        held = len(MasterLibrary(calibrations).held())
    except PrepipeError as error:
        return Check("masters", State.FAILURE, str(error), "see to that file, or move it away")
    if held:
        remedy = "look at them, then accept or refuse them with `prepipe masters mark`"
        return Check("masters", State.WARNING, f"{found}; {held} are held, not used", remedy)
    return Check("masters", State.OK, found)


def check_detector(site: Site) -> Check:
    """Whether the tables of the detector that are named can be read."""
    from prepipe.engines.detector.corrections import check_tables

    try:
        named = check_tables(site.calibration)
    except PrepipeError as error:
        remedy = "look at calibration.crosstalk, linearity and bad_pixels"
        return Check("detector tables", State.FAILURE, str(error), remedy)
    return Check("detector tables", State.OK, ", ".join(named) or "none is set")


def _existing(path: Path) -> Path:
    while not os.path.lexists(path) and path != path.parent:
        path = path.parent
    return path


def _can_write(directory: Path) -> bool:
    # The permissions alone do not tell: root may all, and some file systems are read-only.
    try:
        with tempfile.NamedTemporaryFile(dir=directory, prefix=".prepipe-"):
            return True
    except OSError:
        return False

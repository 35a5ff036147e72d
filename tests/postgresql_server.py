"""A real PostgreSQL for tests: its own data, a socket in a directory of its own, no network."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg

START_WITHIN_S = 60.0
USER = "prepipe"
_SCHEMAS = itertools.count()


def binaries() -> Path | None:
    """Where PostgreSQL's programs are; Debian keeps them off the PATH."""
    if found := shutil.which("initdb"):
        return Path(found).parent
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return debian[-1].parent if debian else None


class Server:
    """A server that can be killed and started again on the same data.

    It refuses to run as root, who becomes user ``postgres`` for it.
    """

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        # the path of a socket may have 107 characters
        self.directory = Path(tempfile.mkdtemp(prefix="prepipe-pg-"))
        self._process: subprocess.Popen[bytes] | None = None
        if os.geteuid() == 0:
            owner = pwd.getpwnam("postgres")
            os.chown(self.directory, owner.pw_uid, owner.pw_gid)
        initdb = [programs / "initdb", "-D", self._data, "-U", USER, "-A", "trust", "-E", "UTF8"]
        options = ("--no-locale", "--no-sync", "--no-instructions")
        subprocess.run(
            [*_as_owner(), *initdb, *options],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=self.directory,
        )
        self.start()

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    @property
    def url(self) -> str:
        """Of its one database."""
        return f"postgresql+psycopg://{USER}@/postgres?host={self.directory}"

    def start(self) -> None:
        """Start it and wait until it answers."""
        settings = ("listen_addresses=", "fsync=off", "max_connections=50")
        options = [word for setting in settings for word in ("-c", setting)]
        command = [self._programs / "postgres", "-D", self._data, "-k", self.directory, *options]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*_as_owner(), *command],
                stdout=log,
                stderr=log,
                cwd=self.directory,
                start_new_session=True,
            )
        until = time.monotonic() + START_WITHIN_S
        while True:
            try:
                self.run("SELECT 1")
                return
            except psycopg.OperationalError:
                if time.monotonic() > until or self._process.poll() is not None:
                    raise
                time.sleep(0.05)

    def run(self, statement: str) -> None:
        """Run one statement."""
        where = f"host={self.directory} user={USER} dbname=postgres"
        with psycopg.connect(where, autocommit=True) as connection:
            connection.execute(statement.encode())

    def new_schema(self) -> str:
        """URL of a place where no table is yet."""
        name = f"test_{next(_SCHEMAS)}"
        self.run(f"CREATE SCHEMA {name}")
        return f"{self.url}&options=-csearch_path%3D{name}"

    def kill(self) -> None:
        """Kill it with all its processes, at once."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        """Stop it and remove its data."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


def _as_owner() -> list[str]:
    """It ends with whoever started it, and is never root."""
    user = ["--reuid=postgres", "--regid=postgres", "--clear-groups"]
    return ["setpriv", "--pdeathsig=INT", *(user if os.geteuid() == 0 else [])]

"""What `prepipe doctor` looks at for pipelines with a repository."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from prepipe.engines.base import Finding
from prepipe.engines.external import program_path, sourced_environment
from prepipe.errors import ConfigError

__all__ = ["environment_findings", "limit_finding", "path_finding", "repository_finding"]


def environment_findings(
    engine: str, setup: Path | None, programs: Mapping[str, str]
) -> Iterator[Finding]:
    """Whether the environment can be set up, and each program is in it.

    Parameters
    ----------
    engine : str
        Name of its table of settings.
    setup : Path or None
    programs : mapping
        By the name of its setting.
    """
    try:
        known = dict(os.environ) if setup is None else sourced_environment(setup)
    except ConfigError as error:
        yield Finding("setup", str(error), f"look at engines.{engine}.setup")
        return
    for setting, program in programs.items():
        what = f"engines.{engine}.{setting}"
        try:
            yield Finding(setting, program_path(program, known, what))
        except ConfigError as error:
            yield Finding(setting, str(error), f"look at engines.{engine}.setup and its PATH")


def path_finding(what: str, path: Path, setting: str) -> Finding:
    """Whether a file or directory can be read here."""
    if os.access(path, os.R_OK):
        return Finding(what, str(path))
    return Finding(what, f"{path} cannot be read", f"look at {setting}")


def repository_finding(root: Path) -> Finding:
    """Whether a shared repository can be written, or made."""
    nearest = next(path for path in (root, *root.parents) if path.exists())
    if nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK):
        return Finding("repository", str(root) if nearest == root else f"{root} will be made")
    return Finding("repository", f"{nearest} cannot be written", "give this user the right to")


def limit_finding(engine: str, limit_s: float, worker_limit_s: float) -> Finding:
    """Whether a CCD's time ends before the worker's."""
    found = f"{limit_s:g} s, a worker's {worker_limit_s:g} s"
    if limit_s < worker_limit_s:
        return Finding("time limit", found)
    remedy = f"set cluster.time_limit_s above engines.{engine}.time_limit_s"
    return Finding("time limit", f"time limit {found}", remedy)

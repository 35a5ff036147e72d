"""What `prepipe doctor` looks at for pipelines with a repository."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from prepipe.engines.base import Finding
from prepipe.engines.external import program_path, sourced_environment
from prepipe.errors import ConfigError

__all__ = ["environment_findings", "path_finding", "repository_finding"]


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
        yield Finding(f"{engine}.setup", str(error), "correct the file, or the setting")
        return
    yield Finding(f"{engine}.setup", "this process's own" if setup is None else str(setup))
    for setting, program in programs.items():
        what = f"{engine}.{setting}"
        try:
            yield Finding(what, program_path(program, known, what))
        except ConfigError:
            yield Finding(
                what, f"no program {program}", f"set it, or put it on PATH in {engine}.setup"
            )


def path_finding(what: str, path: Path) -> Finding:
    """Whether a file or directory can be read here."""
    if os.access(path, os.R_OK):
        return Finding(what, str(path))
    return Finding(what, f"{path} cannot be read", "look at its name, and on this node")


def repository_finding(what: str, root: Path) -> Finding:
    """Whether a shared repository can be written, or made."""
    nearest = next(path for path in (root, *root.parents) if path.exists())
    if os.access(nearest, os.W_OK | os.X_OK) and nearest.is_dir():
        return Finding(what, f"{root}" if nearest == root else f"{root} will be made")
    return Finding(what, f"{nearest} cannot be written", "give this user the permission")

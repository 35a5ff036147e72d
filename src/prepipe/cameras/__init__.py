"""All that differs between instruments: one module a camera, behind `Camera`."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

from prepipe.cameras.base import Camera
from prepipe.cameras.decam import Decam
from prepipe.cameras.generic import GenericCamera
from prepipe.cameras.hsc import Hsc
from prepipe.errors import ConfigError

__all__ = ["Camera", "Decam", "GenericCamera", "Hsc", "load_camera"]


def load_camera(name: str) -> Camera:
    """Camera by its name, or by the TOML file that describes it.

    Parameters
    ----------
    name : str
        ``"decam"``, ``"hsc"``, a camera described in this folder (``"sdss"``), or the path of a
        ``.toml`` file.

    Raises
    ------
    ConfigError
        If there is no such camera, or its file is wrong.
    """
    if name.endswith(".toml"):
        return GenericCamera.read(Path(name))
    if name == "decam":
        return Decam()
    if name == "hsc":
        return Hsc()
    with as_file(files("prepipe.cameras")) as folder:
        described = sorted(folder.glob("*.toml"))
        for path in described:
            if path.stem == name:
                return GenericCamera.read(path)
    known = ", ".join(["decam", "hsc", *(path.stem for path in described)])
    raise ConfigError(
        f"no camera {name!r}: write one of {known}, or the path of a .toml that describes one"
    )

"""All that differs between instruments: one module a camera, behind `Camera`."""

from __future__ import annotations

from pathlib import Path

from prepipe.cameras.base import Camera
from prepipe.cameras.decam import Decam
from prepipe.cameras.generic import GenericCamera
from prepipe.errors import ConfigError

__all__ = ["Camera", "Decam", "GenericCamera", "load_camera"]


def load_camera(name: str) -> Camera:
    """Camera by its name, or by the TOML file that describes it.

    Parameters
    ----------
    name : str
        ``"decam"``, or the path of a ``.toml`` file.

    Raises
    ------
    ConfigError
        If there is no such camera, or its file is wrong.
    """
    if name.endswith(".toml"):
        return GenericCamera.read(Path(name))
    if name.lower() == "decam":
        return Decam()
    raise ConfigError(f"no camera {name!r}: write decam, or the path of a .toml that describes one")

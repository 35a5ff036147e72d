"""`Site`: all settings of one site, read from ``prepipe.toml``."""

from __future__ import annotations

import tomllib
from pathlib import Path

from pydantic import Field, ValidationError, field_validator, model_validator

from prepipe.config.calibration import Calibration, Limits
from prepipe.config.cluster import Cluster
from prepipe.config.compute import Compute
from prepipe.config.engines import Engines
from prepipe.config.section import Section
from prepipe.config.telescope import Link, Pack, Push, Telescope
from prepipe.errors import ConfigError

__all__ = ["Site"]


class Site(Section):
    """All settings of one site.

    Relative paths are taken from the directory of the file they were read from.
    """

    name: str = Field("my site", description="shown in reports")
    camera: str = Field("decam", description="decam, hsc, or a .toml file that describes a camera")
    telescope: Telescope = Telescope()
    pack: Pack = Pack()
    link: Link = Link()
    push: Push = Push()
    cluster: Cluster = Cluster()
    compute: Compute = Compute()
    calibration: Calibration = Calibration()
    engines: Engines = Engines()
    limits: dict[str, Limits] = Field(
        {"default": Limits()},
        description="by camera and band: [limits.decam.g], else [limits.decam], [limits.g] "
        "or [limits.default]; what one of them leaves out is taken from the next",
    )

    @field_validator("limits", mode="before")
    @classmethod
    def _by_camera_and_band(cls, told: object) -> object:
        """``[limits.decam.g]`` is the table ``g`` in the table ``decam``: name it ``decam.g``."""
        return _unfolded(told) if isinstance(told, dict) else told

    @model_validator(mode="after")
    def _a_journal_each(self) -> Site:
        # the name of the driver makes no other database of it
        here, there = (
            (end.journal or "").partition("://")[2] for end in (self.telescope, self.cluster)
        )
        if here and here == there:
            raise ValueError("telescope.journal and cluster.journal must be two databases")
        return self

    @classmethod
    def read(cls, path: Path) -> Site:
        """Read a ``prepipe.toml``.

        Raises
        ------
        ConfigError
            If the file is missing, is not TOML, or a setting is unknown or wrong.
        """
        try:
            settings = tomllib.loads(path.read_text())
        except FileNotFoundError:
            raise ConfigError(
                f"no configuration at {path}: write one with `prepipe init`"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} cannot be read: {error}") from error
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path} is not valid TOML: {error}") from error
        try:
            return cls.model_validate(settings).anchored(path.resolve().parent)
        except ValidationError as error:
            raise ConfigError(f"{path}: {_first_fault(error)}") from error

    def anchored(self, directory: Path) -> Site:
        """The same site with every relative path taken from `directory`."""

        def anchor(section: Section) -> dict[str, object]:
            return {
                name: directory / value.expanduser()
                for name, value in section
                if isinstance(value, Path)
            }

        sections: dict[str, object] = {}
        for name in ("telescope", "cluster", "calibration"):
            section = getattr(self, name)
            sections[name] = section.model_copy(update=anchor(section))
        pipelines = {
            name: section.model_copy(update=anchor(section))
            for name, section in self.engines
            if isinstance(section, Section)
        }
        sections["engines"] = self.engines.model_copy(update=pipelines)
        if self.link.kind == "local":
            sections["link"] = self.link.model_copy(update=anchor(self.link))
        if self.camera.endswith(".toml"):
            sections["camera"] = str(directory / Path(self.camera).expanduser())
        return self.model_copy(update=sections)


def _unfolded(told: dict[str, object]) -> dict[str, object]:
    tables: dict[str, object] = {}
    for name, table in told.items():
        if not isinstance(table, dict):
            tables[name] = table
            continue
        inner = {key: value for key, value in table.items() if isinstance(value, dict)}
        own = {key: value for key, value in table.items() if key not in inner}
        if own or not inner:
            tables[name] = own
        tables |= {f"{name}.{key}": value for key, value in inner.items()}
    return tables


def _first_fault(error: ValidationError) -> str:
    fault = error.errors()[0]
    where = ".".join(str(part) for part in fault["loc"]) or "settings"
    if fault["type"] == "extra_forbidden":
        return f"there is no setting {where!r}"
    return f"{where}: {fault['msg'].removeprefix('Value error, ')}"

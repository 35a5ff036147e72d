"""`Site`: everything a site may set, read from ``prepipe.toml``.

Every field has a default that works on one machine, a unit in its name or
description, and the description itself is what ``prepipe init`` writes beside it.
"""

from __future__ import annotations

import tomllib
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from prepipe.errors import ConfigError

__all__ = [
    "PACK_SETTINGS",
    "BiasChange",
    "Calibration",
    "Cluster",
    "External",
    "FlatChange",
    "Limits",
    "Link",
    "Method",
    "Pack",
    "ProductForm",
    "Push",
    "Rescue",
    "Site",
    "Telescope",
]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Method(StrEnum):
    """In what order, and how many at a time, exposures leave the telescope."""

    BATCH = "batch"
    SERIAL = "serial"
    PARALLEL = "parallel"
    LIST = "list"
    END_OF_NIGHT = "end-of-night"


class Telescope(_Section):
    """The telescope's end: where raw exposures appear."""

    raw: Path = Field(Path("raw"), description="directory the instrument writes raw exposures to")
    work: Path = Field(
        Path("telescope"), description="prepipe's own directory here: journal, packets under way"
    )
    pattern: str = Field("*.fits.fz", description="which files there are exposures")
    poll_s: float = Field(1.0, gt=0, description="seconds between two looks at the directory")
    give_up_s: float = Field(
        120.0, ge=0, description="a file that stays incomplete this long is quarantined"
    )
    share: Path | None = Field(
        None,
        examples=["/data_shared/prepipe"],
        description="directory that all hosts see which send from this raw directory to the same "
        "cluster: they divide the exposures; unset if there is one host",
    )
    takeover_s: float = Field(
        60.0, ge=1, description="share: exposures of a host that is silent this long are taken over"
    )


class External(_Section):
    """Commands of codec ``external``, each a list of words, run without a shell."""

    encode: tuple[str, ...] = Field(
        (), description='packs: ["f2j", "-i", "{input}", "-o", "{output}"]; {input} is a FITS image'
    )
    decode: tuple[str, ...] = Field(
        (), description='unpacks, at the cluster: ["j2f", "-i", "{input}", "-o", "{output}"]'
    )
    suffix: str = Field(
        ".jp2",
        pattern=r"^\.[A-Za-z0-9]{1,10}$",
        description="what the name of a packed file ends with",
    )
    timeout_s: float = Field(120.0, gt=0, description="a command that takes longer is killed")

    @model_validator(mode="after")
    def _files_named(self) -> External:
        for name, words in (("encode", self.encode), ("decode", self.decode)):
            together = " ".join(words)
            if words and not ("{input}" in together and "{output}" in together):
                raise ValueError(f"{name} must name {{input}} and {{output}}")
        return self


class Pack(_Section):
    """How a CCD's pixels become a packet."""

    codec: str = Field(
        "wavelet",
        description="wavelet, none (bit-exact), rice (lossless), jpeg2000, htj2k or external",
    )
    calibrations: Literal["none", "rice"] = Field(
        "none", description="codec of zeros and dome flats, which nothing may blur"
    )
    preset: Literal["precise", "fast", "faint-link"] = Field(
        "fast", description="wavelet: precise (about 10:1), fast (18:1) or faint-link (27:1)"
    )
    seeing_px: float | None = Field(
        None,
        ge=1,
        le=30,
        examples=[4.0],
        description="wavelet: FWHM of the stars, if known: the loss of the preset in fewer bytes",
    )
    fill: bool = Field(
        True,
        description="wavelet: decode with noise in the place of what was rounded away, so that "
        "thresholds that follow the noise of the pixels stay right",
    )
    ratio: float | None = Field(
        None,
        gt=1,
        le=1000,
        examples=[10.0],
        description="wavelet, jpeg2000: aim at this compression ratio (jpeg2000: 10 if unset)",
    )
    qstep: float | None = Field(
        None,
        gt=0,
        examples=[5.5e-5],
        description="jpeg2000, htj2k: or this quantiser step, as a fraction of 65536 ADU",
    )
    rms_sigma: float | None = Field(
        None,
        gt=0,
        examples=[0.3],
        description="jpeg2000: or this rms error, in units of the frame's noise",
    )
    step_sigma: float | None = Field(
        None,
        gt=0,
        examples=[0.75],
        description="htj2k: or this quantiser step, in units of the frame's noise",
    )
    workers: int = Field(2, ge=1, description="CCDs packed at the same time")
    check_every: int = Field(
        50,
        ge=0,
        description="hold a CCD of every so many exposures against its original, at the lowest "
        "priority, and keep what packing cost; 0 for never",
    )
    external: External = External()

    @model_validator(mode="after")
    def _one_target(self) -> Pack:
        told = [name for name in _TARGETS if getattr(self, name) is not None]
        if len(told) > 1:
            raise ValueError(f"set {' or '.join(told)}, not both")
        return self

    @property
    def parameters(self) -> dict[str, object]:
        """What the codec is told: of its settings those that are set."""
        told = {
            name: getattr(self, name)
            for name in PACK_SETTINGS.get(self.codec, ())
            if getattr(self, name) not in (None, False)
        }
        if self.codec == "jpeg2000" and not told:
            return {"ratio": 10.0}
        return told


_TARGETS = ("ratio", "qstep", "rms_sigma", "step_sigma")

PACK_SETTINGS = {
    "wavelet": ("preset", "seeing_px", "ratio", "fill"),
    "jpeg2000": ("ratio", "qstep", "rms_sigma"),
    "htj2k": ("qstep", "step_sigma"),
}
"""Which settings of `Pack` are whose."""


class Link(_Section):
    """How packets cross."""

    kind: Literal["local", "ssh", "sftp"] = Field(
        "local",
        description="local (another directory of this machine), ssh (a pool of connections to "
        "`prepipe receive` there) or sftp (slower; nothing is installed there)",
    )
    landing: Path = Field(Path("landing"), description="landing directory at the far end")
    host: str = Field("", description="ssh, sftp: host name, or an alias of ~/.ssh/config")
    user: str = Field("", description="ssh, sftp: user there; empty leaves it to ~/.ssh/config")
    port: int | None = Field(
        None, gt=0, lt=65536, examples=[2222], description="ssh, sftp: port, if not the usual one"
    )
    options: tuple[str, ...] = Field(
        (), description='ssh, sftp: further options, each one word, such as "-oProxyJump=gate"'
    )
    timeout_s: float = Field(
        60.0, gt=0, description="ssh, sftp: a packet without progress this long is tried again"
    )
    rate: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        "auto", description="ssh: what the line carries, Mbit/s; auto finds it out"
    )
    connections: int | None = Field(
        None,
        ge=1,
        le=64,
        examples=[8],
        description="ssh: connections in the pool; unset chooses them by the rate",
    )
    congestion: str = Field(
        "bbr", description="ssh: the kernel's congestion control to ask for, where it has it"
    )
    command: str = Field(
        "prepipe", description="ssh: what starts prepipe at the far end, as one would type it there"
    )

    @model_validator(mode="after")
    def _host_given(self) -> Link:
        if self.kind != "local" and not self.host:
            raise ValueError(f"the link {self.kind} needs a host")
        if self.host.startswith("-") or self.user.startswith("-"):
            raise ValueError("host and user must not begin with a dash")
        return self


class Push(_Section):
    """In what order exposures leave."""

    method: Method = Field(
        Method.BATCH, description="batch, serial, parallel, list or end-of-night"
    )
    batch: int = Field(4, ge=1, description="batch: this many newest exposures at a time")
    exposures: tuple[int, ...] = Field((), description="list: exposure numbers, in this order")
    exp_min: int = Field(0, ge=0, description="end-of-night: nothing below this exposure number")
    tries: int = Field(5, ge=1, description="a CCD that failed this often is quarantined")


class Cluster(_Section):
    """The cluster's end: where packets land and CCDs are calibrated."""

    landing: Path = Field(Path("landing"), description="directory that packets land in")
    work: Path = Field(
        Path("cluster"), description="prepipe's own directory here: journal, packets"
    )
    products: Path = Field(
        Path("cluster/products"),
        description="calibrated CCDs: utYYMMDD/CCD/FIELD.F.utYYMMDD.EXPNUM_CCD",
    )
    calibrations: Path = Field(
        Path("cluster/calibrations"), description="master biases and dome flats"
    )
    workers: int = Field(2, ge=1, description="CCDs calibrated at the same time")
    poll_s: float = Field(
        1.0, gt=0, description="seconds between two looks at the landing directory"
    )
    tries: int = Field(3, ge=1, description="a CCD that failed this often is quarantined")
    time_limit_s: float = Field(
        600.0, gt=0, description="a worker that takes longer over one CCD hangs and is replaced"
    )


class Rescue(_Section):
    """What is tried when a CCD's WCS failed and others tell where it looked."""

    search_arcsec: float = Field(
        15.0, gt=0, description="search around the pointing error that others found"
    )
    relaxed_search_arcsec: float = Field(
        25.0, gt=0, description="and once more with this radius and the limits below"
    )
    relaxed_rms_mas: float = Field(
        275.0, gt=0, description="largest residual accepted then, milli-arcsec"
    )
    relaxed_max_mag: float | None = Field(
        None, examples=[14.2], description="only reference stars brighter than this then"
    )


class ProductForm(_Section):
    """In what form calibrated CCDs are written."""

    wcs: Literal["tpv", "sip"] = Field(
        "tpv", description="distortion as TPV, or as SIP within 1 mas of it"
    )
    catalogue: Literal["fits", "parquet", "both"] = Field(
        "fits", description="source table as FITS, Parquet, or both"
    )
    pixels: Literal["quantised", "float"] = Field(
        "quantised",
        description="in steps of an eighth of the noise, or float: to the last bit, uncompressed",
    )


class BiasChange(_Section):
    """A new master bias that differs more from the last good one is held until accepted by hand."""

    shift_adu: float = Field(1.0, ge=0, description="median of the difference, ADU")
    rms_adu: float = Field(1.0, ge=0, description="its rms beyond the noise of both, ADU")
    deviating: float = Field(
        0.005, ge=0, le=1, description="fraction of the pixels beyond 5 sigma of that rms"
    )


class FlatChange(_Section):
    """A new dome flat that differs more from the last good one is held until accepted by hand."""

    shift: float = Field(0.003, ge=0, description="median of the difference, both flats being 1")
    rms: float = Field(0.003, ge=0, description="its rms beyond the noise of both")
    deviating: float = Field(
        0.005, ge=0, le=1, description="fraction of the pixels beyond 5 sigma of that rms"
    )


class Calibration(_Section):
    """How a CCD is calibrated."""

    engine: Literal["builtin"] = Field("builtin", description="what reduces a CCD")
    reference: Path | None = Field(
        None,
        examples=["gaia.fits"],
        description="star catalogue: FITS, CSV or Parquet with ra, dec and a magnitude",
    )
    columns: dict[str, str] = Field(
        {}, description='its columns, where not recognised: {ra = "RA_J2000", mag = "rmag"}'
    )
    search_arcsec: float = Field(75.0, gt=0, description="largest pointing error looked for")
    max_order: Literal[1, 2, 3] = Field(
        3, description="highest order of the correction of the header's distortion, if stars allow"
    )
    detection_snr: float = Field(5.0, gt=1, description="faintest source, in sigma")
    photometry: Literal["aperture", "psf"] = Field(
        "aperture",
        description="psf fits overlapping stars together, for crowded fields; aperture is faster",
    )
    seeing_guess_arcsec: float = Field(1.1, gt=0, description="seeing to begin with")
    masters: Literal["nearest", "night"] = Field(
        "nearest",
        description="which bias and flat a CCD takes: the nearest night's, or night (only those "
        "of its own); where there is none it goes on without, and is yellow",
    )
    days: int = Field(30, ge=0, description="masters further away in time than this are not used")
    old_days: int = Field(
        7, ge=0, description="a bias or flat further away than this makes the CCD yellow"
    )
    crosstalk: Path | None = Field(
        None,
        examples=["DECam_xtalk_20130606.txt"],
        description="table of crosstalk: the observatory's, or a CSV of victim,source,coefficient",
    )
    crosstalk_between: bool = Field(
        False, description="subtract the crosstalk of other CCDs, too, where they are at hand"
    )
    linearity: Path | None = Field(
        None,
        examples=["linearity_table_v0.4.fits"],
        description="linearity: the observatory's FITS, or a CSV of ccd,amplifier,adu,linear_adu",
    )
    bad_pixels: Path | None = Field(
        None,
        examples=["bad_pixels"],
        description="map of bad pixels (ECSV, FITS, CSV), or a directory of maps",
    )
    bias_change: BiasChange = BiasChange()
    flat_change: FlatChange = FlatChange()
    rescue: Rescue = Rescue()
    output: ProductForm = ProductForm()

    @property
    def master_days(self) -> int:
        """How many nights away a master may be."""
        return 0 if self.masters == "night" else self.days


class Limits(_Section):
    """A CCD is green below the first figure, yellow below the second, orange below the third."""

    seeing_arcsec: tuple[float, float, float] = Field(
        (1.5, 2.0, 3.0), description="seeing, FWHM in arcsec"
    )
    wcs_rms_mas: tuple[float, float, float] = Field(
        (100.0, 200.0, 350.0), description="astrometric residual, milli-arcsec"
    )
    zero_point_scatter: tuple[float, float, float] = Field(
        (0.08, 0.15, 0.3), description="scatter of the zero point's stars, mag"
    )
    ellipticity: tuple[float, float, float] = Field(
        (0.15, 0.25, 0.4), description="ellipticity of the stars"
    )

    extinction_mag: tuple[float, float, float] = Field(
        (0.7, 1.5, 3.0), description="light lost against a clear sky at the zenith, mag"
    )

    sky_fraction: tuple[float, float, float] = Field(
        (0.2, 0.3, 0.6), description="sky, as a part of what saturates a pixel: twilight, moon"
    )

    @model_validator(mode="after")
    def _ascending(self) -> Limits:
        for name, limits in self:
            if list(limits) != sorted(limits):
                raise ValueError(f"{name}: the three limits must ascend")
        return self


class Site(_Section):
    """All settings of one site.

    Relative paths are taken from the directory of the file they were read from.
    """

    name: str = Field("my site", description="shown in reports")
    camera: str = Field("decam", description="decam, or a .toml file that describes a camera")
    telescope: Telescope = Telescope()
    pack: Pack = Pack()
    link: Link = Link()
    push: Push = Push()
    cluster: Cluster = Cluster()
    calibration: Calibration = Calibration()
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

        def anchor(section: _Section) -> dict[str, object]:
            return {
                name: directory / value.expanduser()
                for name, value in section
                if isinstance(value, Path)
            }

        sections: dict[str, object] = {}
        for name in ("telescope", "cluster", "calibration"):
            section = getattr(self, name)
            sections[name] = section.model_copy(update=anchor(section))
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

"""The telescope's end: watching, packing and sending."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from prepipe.config.section import JournalUrl, Section

__all__ = ["PACK_SETTINGS", "External", "Link", "Method", "Pack", "Push", "Telescope"]


class Method(StrEnum):
    """In what order, and how many at a time, exposures leave the telescope."""

    BATCH = "batch"
    SERIAL = "serial"
    PARALLEL = "parallel"
    LIST = "list"
    END_OF_NIGHT = "end-of-night"


class Telescope(Section):
    """The telescope's end: where raw exposures appear."""

    raw: Path = Field(Path("raw"), description="directory the instrument writes raw exposures to")
    work: Path = Field(
        Path("telescope"), description="prepipe's own directory here: journal, packets under way"
    )
    journal: JournalUrl | None = Field(
        None,
        examples=["postgresql+psycopg://prepipe@db.site/telescope"],
        description="PostgreSQL database for the journal (password in ~/.pgpass); unset: a file "
        "in work",
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


class External(Section):
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


Preset = Literal["precise", "fast", "faint-link"]
_PRESETS = get_args(Preset)
"""The mildest first."""


class Pack(Section):
    """How a CCD's pixels become a packet."""

    codec: str = Field(
        "wavelet",
        description="wavelet, none (bit-exact), rice (lossless), jpeg2000, htj2k or external",
    )
    calibrations: Literal["none", "rice"] = Field(
        "none", description="codec of zeros and dome flats, which nothing may blur"
    )
    preset: Preset = Field(
        "fast", description="wavelet: precise (about 10:1), fast (17:1) or faint-link (26:1)"
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
    rate_mbit_s: float | None = Field(
        None,
        gt=0,
        examples=[50.0],
        description="wavelet, jpeg2000: or aim at this much of the line for an exposure every "
        "cadence_s, Mbit/s",
    )
    cadence_s: float = Field(
        60.0, gt=0, description="rate_mbit_s: seconds from one exposure to the next"
    )
    strongest: Preset | None = Field(
        None,
        examples=["faint-link"],
        description="wavelet: new exposures are packed by presets up to this one while too much "
        "waits for the line; unset: by preset, whatever waits",
    )
    backlog_s: float = Field(
        120.0, gt=0, description="strongest: too much is what takes the line longer than this"
    )
    archive: Literal["residual", "whole"] = Field(
        "residual",
        description="what `prepipe archive` sends of a CCD packed by wavelet: residual (what its "
        "packet lost; the two together give the original back) or whole",
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
        if self.rate_mbit_s is not None and self.codec not in _AIM_AT_RATIO:
            raise ValueError(f"rate_mbit_s is for codec {' or '.join(_AIM_AT_RATIO)}")
        return self

    @model_validator(mode="after")
    def _strongest_is_stronger(self) -> Pack:
        if self.strongest is None:
            return self
        if self.codec != "wavelet":
            raise ValueError("strongest is for codec wavelet, which has presets")
        if _PRESETS.index(self.strongest) < _PRESETS.index(self.preset):
            raise ValueError(f"strongest = {self.strongest!r} is milder than the preset")
        if self.ratio is not None or self.rate_mbit_s is not None:
            raise ValueError("set strongest, or a ratio or rate to aim at, not both")
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


_TARGETS = ("ratio", "rate_mbit_s", "qstep", "rms_sigma", "step_sigma")
_AIM_AT_RATIO = ("wavelet", "jpeg2000")

PACK_SETTINGS = {
    "wavelet": ("preset", "seeing_px", "ratio", "fill"),
    "jpeg2000": ("ratio", "qstep", "rms_sigma"),
    "htj2k": ("qstep", "step_sigma"),
}
"""Which settings of `Pack` are whose."""


class Link(Section):
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


class Push(Section):
    """In what order exposures leave."""

    method: Method = Field(
        Method.BATCH, description="batch, serial, parallel, list or end-of-night"
    )
    batch: int = Field(4, ge=1, description="batch: this many newest exposures at a time")
    exposures: tuple[int, ...] = Field((), description="list: exposure numbers, in this order")
    exp_min: int = Field(0, ge=0, description="end-of-night: nothing below this exposure number")
    tries: int = Field(5, ge=1, description="a CCD that failed this often is quarantined")

"""`prepipe pack` and `prepipe unpack`: raw files to packets and back, by hand."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prepipe.cli.app import add_command
from prepipe.cli.options import DEFAULT_CONFIG, Config, Json, number_list, read_site, writable
from prepipe.cli.output import Failures, number, print_json, print_table
from prepipe.cli.progress import progress
from prepipe.errors import ConfigError, PrepipeError

if TYPE_CHECKING:
    from prepipe.cameras import Camera
    from prepipe.codec.fits_bytes import HduSpan
    from prepipe.config import Pack, Site
    from prepipe.model import Ccd, Exposure, Kind, Packet

__all__ = ["register"]

DEFAULT_CODEC = "wavelet"


@dataclass(frozen=True)
class _Job:
    """One CCD to be packed."""

    path: Path
    hdu: HduSpan
    exposure: Exposure
    ccd: Ccd


def pack(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Raw exposures.")],
    out: Annotated[Path, typer.Option("--out", help="Directory for the packets.")],
    codec: Annotated[
        str | None,
        typer.Option(
            "--codec",
            help="wavelet, none (bit-exact), rice (lossless), jpeg2000, htj2k or external.  "
            "[default: wavelet; none for zeros and dome flats]",
        ),
    ] = None,
    preset: Annotated[
        str | None, typer.Option("--preset", help="wavelet: precise, fast or faint-link.")
    ] = None,
    seeing_px: Annotated[
        float | None, typer.Option("--seeing-px", help="wavelet: FWHM of the stars, if known.")
    ] = None,
    ratio: Annotated[
        float | None, typer.Option("--ratio", help="wavelet, jpeg2000: compression to aim at.")
    ] = None,
    qstep: Annotated[
        float | None,
        typer.Option(
            "--qstep", help="jpeg2000, htj2k: quantiser step, as a fraction of 65536 ADU."
        ),
    ] = None,
    rms_sigma: Annotated[
        float | None,
        typer.Option("--rms-sigma", help="jpeg2000: rms error in units of the noise."),
    ] = None,
    ccds: Annotated[
        str | None, typer.Option("--ccds", help="Only these: 25,31,40-44.  [default: all]")
    ] = None,
    camera: Annotated[
        str, typer.Option("--camera", help="decam, or a .toml that describes a camera.")
    ] = "decam",
    config: Config = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Pack every CCD of raw exposures into a packet of its own."""
    from prepipe.cameras import load_camera
    from prepipe.codec.pack import pack_ccd
    from prepipe.codec.packet import write_packet

    wanted = None if ccds is None else number_list(ccds, "--ccds")
    _site_if_any(config)
    asked = {"preset": preset, "seeing_px": seeing_px, "ratio": ratio}
    asked |= {"qstep": qstep, "rms_sigma": rms_sigma}
    told = {name: value for name, value in asked.items() if value is not None}
    settings = _pack_settings(codec or DEFAULT_CODEC, told)
    writable(out, "--out")
    failures = Failures()
    jobs = list(_jobs(files, load_camera(camera), wanted, failures))
    packed: list[tuple[_Job, Path, Packet]] = []
    with progress("packed CCDs", len(jobs)) as advance:
        for job in jobs:
            name = f"{job.path} CCD {job.ccd.number}"
            try:
                how = _codec(settings, job.exposure.kind, told=codec is not None)
                made = pack_ccd(job.path, job.hdu, job.exposure, job.ccd, *how)
                packed.append((job, write_packet(out, made), made.packet))
            except ConfigError:
                raise
            except PrepipeError as error:
                failures.add(name, error)
            advance(name)
    _report_packed(packed, failures, as_json=as_json)
    failures.finish()


def _pack_settings(codec: str, told: dict[str, Any]) -> Pack:
    from pydantic import ValidationError

    from prepipe.codec import get_codec
    from prepipe.config import PACK_SETTINGS, Pack

    get_codec(codec)
    for name in told:
        if name not in PACK_SETTINGS.get(codec, ()):
            raise ConfigError(f"--{name.replace('_', '-')} is not for codec {codec}")
    try:
        return Pack(codec=codec, **told)
    except ValidationError as error:
        fault = error.errors()[0]
        where = "".join(f"--{part}: ".replace("_", "-") for part in fault["loc"])
        raise ConfigError(f"{where}{fault['msg'].removeprefix('Value error, ')}") from error


def _site_if_any(config: Path) -> Site | None:
    """The settings, if there are any; codec `external` finds its commands by them."""
    return read_site(config) if config.exists() or config != DEFAULT_CONFIG else None


def _codec(settings: Pack, kind: Kind, *, told: bool) -> tuple[str, dict[str, object]]:
    """Codec and its parameters; zeros and dome flats are blurred only by who says so."""
    from prepipe.telescope.pack import LOSSLESS_KINDS

    if kind in LOSSLESS_KINDS and not told:
        return settings.calibrations, {}
    return settings.codec, settings.parameters


def _jobs(
    files: Iterable[Path], camera: Camera, wanted: tuple[int, ...] | None, failures: Failures
) -> Iterable[_Job]:
    from prepipe.telescope.intake import ccd_spans, read_exposure

    for path in files:
        try:
            raw = read_exposure(path, camera)
            hdus = ccd_spans(path, camera)
        except PrepipeError as error:
            failures.add(path, error)
            continue
        if raw.exposure is None:
            failures.add(path, "holds no image of the sky, nor zero or dome flat")
            continue
        held = {ccd.number: ccd for ccd in raw.ccds}
        for chosen in held if wanted is None else wanted:
            if chosen in held:
                yield _Job(path, hdus[chosen], raw.exposure, held[chosen])
            else:
                failures.add(f"{path} CCD {chosen}", "the file has no such CCD")


def _report_packed(
    packed: list[tuple[_Job, Path, Packet]], failures: Failures, *, as_json: bool
) -> None:
    told = [
        {
            "file": job.path,
            "exposure": job.exposure.number,
            "ccd": job.ccd.number,
            "packet": path,
            "bytes": packet.payload_bytes,
            **_fidelity(packet),
        }
        for job, path, packet in packed
    ]
    if as_json:
        print_json({"packets": told, "failed": failures.reasons})
    elif told:
        _packet_table(told, "packet")


def _fidelity(packet: Packet) -> dict[str, Any]:
    """What the packing saved and lost."""
    known = packet.parameters
    names = ("ratio", "rms_error_adu", "rms_error_sigma", "max_error_adu")
    return {"codec": packet.codec, **{name: known.get(name) for name in names}}


def _packet_table(told: list[dict[str, Any]], written: str) -> None:
    rows = [
        (
            *(_or_dash(packet[name]) for name in ("exposure", "ccd")),
            packet["codec"],
            number(packet["ratio"]),
            number(packet["rms_error_adu"]),
            number(packet["rms_error_sigma"], 3),
            packet[written],
        )
        for packet in told
    ]
    columns = (
        ">exposure",
        ">CCD",
        "codec",
        ">ratio",
        ">rms error ADU",
        ">in sky noise",
        written,
    )
    print_table(columns, rows)


def _or_dash(value: object) -> object:
    return "-" if value is None else value


def unpack(
    packets: Annotated[
        list[Path],
        typer.Argument(
            metavar="PACKET...", help="Packets, or the legacy system's .tar of .jp2 files."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Directory for the FITS files.")],
    base: Annotated[
        list[Path] | None,
        typer.Option(
            "--base", help="Where the packets are that residuals need, if not near these."
        ),
    ] = None,
    config: Config = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Write the FITS file of each packet, with the original header cards.

    Residuals are put together with the packets that were sent before them.
    """
    writable(out, "--out")
    site = _site_if_any(config)
    places = [*(base or ()), *([site.cluster.landing] if site else [])]
    failures = Failures()
    told: list[dict[str, Any]] = []
    with progress("unpacked", len(packets)) as advance:
        for path in packets:
            try:
                told += _unpacked(path, out, places)
            except PrepipeError as error:
                failures.add(path, error)
            advance(str(path))
    if as_json:
        print_json({"files": told, "failed": failures.reasons})
    elif told:
        _packet_table(told, "file")
    failures.finish()


def _unpacked(path: Path, out: Path, places: list[Path]) -> list[dict[str, Any]]:
    """Unpack a file; what was written, and what is known of it."""
    from prepipe.cluster.originals import original_of
    from prepipe.codec.legacy import unpack_legacy
    from prepipe.codec.packet import read_header
    from prepipe.codec.unpack import unpack_opened

    if path.suffix == ".tar":
        known = dict.fromkeys(
            ("exposure", "ccd", "ratio", "rms_error_adu", "rms_error_sigma", "max_error_adu")
        )
        return [
            {"packet": path, **known, "codec": "legacy", "file": written}
            for written in unpack_legacy(path, out)
        ]
    written = unpack_opened(original_of(path, places), out)
    packet = read_header(path)
    numbers = {"exposure": packet.exposure.number, "ccd": packet.ccd.number}
    return [{"packet": path, **numbers, "file": written, **_fidelity(packet)}]


def register(app: typer.Typer) -> None:
    """Add `pack` and `unpack`."""
    add_command(
        app,
        pack,
        "prepipe pack DECam_00941420.fits.fz --out packets --codec none",
        "prepipe pack DECam_00941420.fits.fz --out packets --preset precise --ccds 25,31",
    )
    add_command(
        app,
        unpack,
        "prepipe unpack packets/*.packet --out fits",
        "prepipe unpack legacy/DECam_00941420.tar --out fits",
    )

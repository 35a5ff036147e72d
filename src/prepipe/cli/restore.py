"""`prepipe restore`: raw files as they were at the telescope, from what has landed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prepipe.cli.app import add_command
from prepipe.cli.options import DEFAULT_CONFIG, Config, Json, read_night, read_site, writable
from prepipe.cli.output import Failures, print_json, print_table
from prepipe.cli.progress import progress
from prepipe.errors import ConfigError, PrepipeError

if TYPE_CHECKING:
    from prepipe.cluster.originals import Landed
    from prepipe.model import Night

__all__ = ["register"]


def restore(
    out: Annotated[Path, typer.Option("--out", help="Directory for the files.")],
    exposures: Annotated[
        list[int] | None, typer.Argument(metavar="[EXPOSURE]...", help="Exposure numbers.")
    ] = None,
    night: Annotated[
        str | None, typer.Option("--night", help="All of this night: YYYY-MM-DD or utYYMMDD.")
    ] = None,
    landing: Annotated[
        Path | None,
        typer.Option("--landing", help="Where packets landed.  [default: as the settings say]"),
    ] = None,
    base: Annotated[
        list[Path] | None,
        typer.Option("--base", help="Where else packets of the night are that residuals need."),
    ] = None,
    packets: Annotated[
        bool,
        typer.Option(
            "--packets", help="Write bit-exact packets, one a CCD, that need no other any more."
        ),
    ] = False,
    config: Config = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Put raw files together again, bit for bit, from the landing directory and its archive.

    Primary header and CCDs are those of the raw file, byte for byte. HDUs that no packet
    brought (guide and focus chips, CCDs that never came) are left out and told. A file that is
    there already is not touched.
    """
    from prepipe.cluster.originals import exposures_landed

    if not exposures and night is None:
        raise ConfigError("restore what? name exposures or a --night")
    of_night = read_night(night)
    where = read_site(config).cluster.landing if landing is None else landing
    writable(out, "--out")
    failures = Failures()
    chosen = _chosen(exposures_landed(where), exposures or [], of_night, failures)
    told: list[dict[str, Any]] = []
    with progress("exposures", len(chosen)) as advance:
        for exposure in chosen:
            try:
                work = _write_packets if packets else _write_file
                told += work(exposure, [*(base or ()), where], out, failures)
            except PrepipeError as error:
                failures.add(f"exposure {exposure.number}", error)
            advance(str(exposure.number))
    _report(told, failures, as_json=as_json)
    failures.finish()


def _chosen(
    there: list[Landed], numbers: list[int], night: Night | None, failures: Failures
) -> list[Landed]:
    """Exposures that are wanted; what is wanted and not there is named."""
    chosen = []
    for exposure in there:
        try:
            of_night = night is None or exposure.night == night
        except PrepipeError as error:
            failures.add(f"exposure {exposure.number}", error)
            continue
        if of_night and (not numbers or exposure.number in numbers):
            chosen.append(exposure)
    found = {exposure.number for exposure in chosen}
    named = f" of {night}" if night else ""
    for number in dict.fromkeys(numbers):
        if number not in found:
            failures.add(f"exposure {number}", f"no packet of it{named} has landed")
    if night and not numbers and not chosen:
        failures.add(f"night {night}", "no packet of it has landed")
    return chosen


def _write_file(
    exposure: Landed, places: list[Path], out: Path, failures: Failures
) -> list[dict[str, Any]]:
    from prepipe.cluster.originals import original_packets, restore_file

    there, missing = original_packets(exposure)
    if missing:
        _add_missing(exposure, missing, failures)
        return []
    made = restore_file(there.values(), places, out)
    return [
        {
            "exposure": exposure.number,
            "file": made.path,
            "ccds": made.ccds,
            "hdus_left_out": made.gaps,
            "odd_sums": made.odd_sums,
        }
    ]


def _write_packets(
    exposure: Landed, places: list[Path], out: Path, failures: Failures
) -> list[dict[str, Any]]:
    from prepipe.cluster.originals import original_of, original_packets
    from prepipe.codec.packet import repack, write_packet

    there, missing = original_packets(exposure)
    if missing:
        _add_missing(exposure, missing, failures)
    told = []
    for ccd, path in there.items():
        try:
            original = original_of(path, places)
            original.pixels()
            written = write_packet(out, repack(original))
        except PrepipeError as error:
            failures.add(f"exposure {exposure.number} CCD {ccd}", error)
        else:
            told.append({"exposure": exposure.number, "file": written, "ccds": (ccd,)})
    return told


def _add_missing(exposure: Landed, ccds: tuple[int, ...], failures: Failures) -> None:
    failures.add(
        f"exposure {exposure.number}",
        f"the originals of {len(ccds)} of {len(exposure.ccds)} CCDs ({_listed(ccds)}) are not in "
        "the archive yet: they were sent with a loss; run `prepipe archive` at the telescope",
    )


def _report(told: list[dict[str, Any]], failures: Failures, *, as_json: bool) -> None:
    if as_json:
        print_json({"files": told, "failed": failures.reasons})
    elif told:
        rows = [
            (
                each["exposure"],
                len(each["ccds"]),
                _listed(each.get("hdus_left_out", ())),
                _listed(each.get("odd_sums", ())),
                each["file"],
            )
            for each in told
        ]
        columns = (">exposure", ">CCDs", "HDUs left out", "CCDs with odd sums", "file")
        print_table(columns, rows)


def _listed(numbers: tuple[int, ...]) -> str:
    """``3, 63-70``; a dash if there are none."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in runs) or "-"


def register(app: typer.Typer) -> None:
    """Add `restore`."""
    add_command(
        app,
        restore,
        "prepipe restore 941420 --out originals",
        "prepipe restore --night ut200306 --out originals",
        "prepipe restore --night ut200306 --packets --out landing/archive",
    )

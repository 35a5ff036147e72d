"""What ``pipeview.pl -stage WCSNON -wcs`` prints, read by the names of its columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prepipe.errors import ConfigError, EngineError
from prepipe.model import PointingHint

__all__ = ["WcsRow", "east_north", "ra_dec_shift", "read_wcs_table"]

COLUMNS = ("FILENAME", "WCSFLAG", "NASTRO", "EWCSXAS", "EWCSYAS", "WCSRASH0", "WCSDESH0")
"""Those that are needed, wherever they stand."""

_MARK = ("FILENAME", "WCSFLAG")
_ENDS = (".fz", ".fits")


@dataclass(frozen=True)
class WcsRow:
    """How the WCS of one image came out.

    Parameters
    ----------
    name : str
        The image's name without ``.fits``.
    flag : int
        1 if the WCS is accepted.
    stars : int
        Matched to the catalogue; 0 is photpipe's hard failure.
    rms_arcsec : tuple of float
        Residuals in x and y.
    shift_arcsec : tuple of float
        From the header's pointing to the true one, in RA and Dec.
    """

    name: str
    flag: int
    stars: int
    rms_arcsec: tuple[float, float]
    shift_arcsec: tuple[float, float]

    @property
    def solved(self) -> bool:
        """Whether the WCS can be trusted."""
        return self.flag == 1 and self.stars > 0

    @property
    def flags(self) -> tuple[str, ...]:
        """Why there is no WCS; empty if there is one."""
        if self.solved:
            return ()
        return ("NO_WCS", "POOR_WCS" if self.stars > 0 else "NO_WCS_STARS")


def read_wcs_table(text: str, name: str) -> WcsRow:
    """Find an image in the table.

    Banners, warnings and lines of other images are passed over; columns may stand in any order,
    and others among them.

    Parameters
    ----------
    text : str
        What pipeview.pl printed.
    name : str
        The image's, without ``.fits``.

    Raises
    ------
    ConfigError
        If the table lacks a column.
    EngineError
        If there is no table, the image is not in it, or its line makes no sense.
    """
    header: Sequence[str] = ()
    found: WcsRow | None = None
    for line in text.splitlines():
        words = line.split()
        if all(mark in words for mark in _MARK):
            header = _complete(words)
        elif header and _stem(words, header) == name:
            found = _row(name, dict(zip(header, words, strict=False)))
    if not header:
        raise EngineError(
            "pipeview.pl -stage WCSNON -wcs printed no table with the columns "
            f"{' and '.join(_MARK)}: if this repeats, look at engines.photpipe.pipeview"
        )
    if found is None:
        raise EngineError(f"pipeview.pl tells nothing of {name}: its WCSNON stage was not reached")
    return found


def _complete(header: Sequence[str]) -> Sequence[str]:
    missing = [column for column in COLUMNS if column not in header]
    if missing:
        raise ConfigError(
            f"pipeview.pl -stage WCSNON -wcs has no column {', '.join(missing)}, only "
            f"{', '.join(header)}: is this a photpipe that prepipe does not know?"
        )
    return header


def _stem(words: Sequence[str], header: Sequence[str]) -> str:
    place = header.index("FILENAME")
    if place >= len(words):
        return ""
    stem = words[place].rpartition("/")[2]
    for end in _ENDS:
        stem = stem.removesuffix(end)
    return stem


def _row(name: str, cells: dict[str, str]) -> WcsRow:
    try:
        return WcsRow(
            name,
            int(cells["WCSFLAG"]),
            int(cells["NASTRO"]),
            (float(cells["EWCSXAS"]), float(cells["EWCSYAS"])),
            (float(cells["WCSRASH0"]), float(cells["WCSDESH0"])),
        )
    except (KeyError, ValueError) as error:
        raise EngineError(
            f"pipeview.pl: the line of {name} makes no sense ({error}): {' '.join(cells.values())}"
        ) from error


def east_north(shift_arcsec: tuple[float, float]) -> tuple[float, float]:
    """A shift of photpipe as a pointing error on the sky, east and north, arcsec.

    photpipe's shifts are taken as they come from IRAF's msccmatch: arcsec in the tangent plane,
    so without a factor cos(Dec) to apply, and from the header's pointing to the true one. Should
    a photpipe count otherwise, this and `ra_dec_shift` are the two places to change.
    """
    return shift_arcsec


def ra_dec_shift(hint: PointingHint) -> str:
    """A pointing error as the value of WCSNON_RADECSHIFT; the inverse of `east_north`."""
    # adding 0.0 turns -0.0 into 0.0
    east, north = (round(value, 3) + 0.0 for value in (hint.east_arcsec, hint.north_arcsec))
    return f"{east:g},{north:g}"

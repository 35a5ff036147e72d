"""Whose column is what: reference catalogues come in anybody's spelling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from prepipe.errors import ConfigError

__all__ = ["Columns", "recognise_columns"]

SPELLINGS = {
    "ra": "ra raj2000 ra_deg radeg ra_icrs _raj2000 alpha_j2000 coord_ra ramean right_ascension",
    "dec": "dec dej2000 dec_deg decdeg de_icrs _dej2000 decj2000 delta_j2000 coord_dec decmean"
    " declination",
    "pm_ra": "pmra pm_ra",
    "pm_dec": "pmdec pmde pm_dec",
    "ra_error": "ra_error e_ra_icrs ra_err raerr e_raj2000 coord_raerr sigra",
    "dec_error": "dec_error e_de_icrs dec_err decerr e_dej2000 coord_decerr sigdec",
    "epoch": "ref_epoch epoch epoch_year epoch_mjd",
    "colour": "bp_rp bp-rp g_r g-r colour color",
}
"""Usual names of each column in lower case, best first: Gaia archive, VizieR, LSST, SDSS."""

COLOUR_PAIRS = (
    ("phot_bp_mean_mag", "phot_rp_mean_mag"),
    ("phot_bp_mean_abmag", "phot_rp_mean_abmag"),
    ("bpmag", "rpmag"),
    ("g", "r"),
    ("g_mag", "r_mag"),
)
"""Pairs whose difference is a colour, where no column holds one."""

BANDS = ("g", "r", "i", "z", "y", "u")
GAIA_G = ("phot_g_mean_mag", "phot_g_mean_abmag", "Gmag")
GAIA_COLOURS = (("bp_rp",), ("bp-rp",), *COLOUR_PAIRS[:3])
"""Columns, in lower case, that give BP - RP."""


@dataclass(frozen=True)
class Columns:
    """Which column of a table is what; None where it has none.

    Parameters
    ----------
    ra, dec, mag : str
    mag_error, pm_ra, pm_dec, ra_error, dec_error : str or None
    epoch : str, float or None
        A column, or the year itself.
    colour : tuple of str
        One column, or two of which the difference is taken, or none.
    in_band : bool
        Whether `mag` is the band asked for.
    bands : tuple of str
        Columns of other magnitudes.
    units : dict
        Of the columns, as the table says; None where it says nothing.
    """

    ra: str
    dec: str
    mag: str
    mag_error: str | None = None
    pm_ra: str | None = None
    pm_dec: str | None = None
    ra_error: str | None = None
    dec_error: str | None = None
    epoch: str | float | None = None
    colour: tuple[str, ...] = ()
    in_band: bool = True
    bands: tuple[str, ...] = ()
    units: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def gaia(self) -> bool:
        """Whether `mag` is Gaia's G and `colour` its BP - RP."""
        colour = tuple(name.lower() for name in self.colour)
        return self.mag in GAIA_G and colour in GAIA_COLOURS

    @property
    def names(self) -> list[str]:
        """Columns to be read from the table."""
        single = [self.ra, self.dec, self.mag, self.mag_error, self.pm_ra, self.pm_dec]
        single += [self.ra_error, self.dec_error]
        single += [self.epoch] if isinstance(self.epoch, str) else []
        return list(dict.fromkeys([c for c in single if c] + [*self.colour, *self.bands]))


def recognise_columns(
    names: Mapping[str, str | None],
    mapping: Mapping[str, str] | None = None,
    band: str | None = None,
) -> Columns:
    """Find out which column of a table is what.

    Parameters
    ----------
    names : Mapping
        Column names with their units (None: not stated).
    mapping : Mapping, optional
        Overrides: `Columns` field or band to column, e.g. ``{"mag": "rPSF"}``; for
        ``epoch`` a year in digits is taken too.
    band : str, optional
        Of the exposure; its column is preferred, then Gaia G, then a column ``mag``,
        then whatever other band there is.

    Returns
    -------
    Columns

    Raises
    ------
    ConfigError
        If RA, Dec or every magnitude is missing, or the mapping names what is not there.
    """
    given = dict(mapping or {})
    _check_mapping(given, names, band)
    lower = {name.lower(): name for name in reversed(list(names))}

    def find(what: str) -> str | None:
        spelled = (lower.get(spelling) for spelling in SPELLINGS[what].split())
        return given.get(what) or next((name for name in spelled if name), None)

    ra, dec = find("ra"), find("dec")
    if ra is None or dec is None:
        raise ConfigError(_complaint("RA and Dec", names))
    mag, in_band = _magnitude_column(names, given, band)
    bands = [column for b in BANDS if (column := given.get(b) or _band_column(names, b))]
    epoch = given.get("epoch")
    return Columns(
        ra=ra,
        dec=dec,
        mag=mag,
        mag_error=given.get("mag_error") or _error_column(lower, mag),
        pm_ra=find("pm_ra"),
        pm_dec=find("pm_dec"),
        ra_error=find("ra_error"),
        dec_error=find("dec_error"),
        epoch=find("epoch") if epoch is None or epoch in names else float(epoch),
        colour=_colour_columns(lower, given.get("colour"), mag),
        in_band=in_band,
        bands=tuple(column for column in bands if column != mag),
        units=dict(names),
    )


def _complaint(missing: str, names: Mapping[str, str | None]) -> str:
    """Message that names the columns there are."""
    found = ", ".join(names) or "none"
    return f"no column for {missing} is recognised among {found}: map it in the configuration"


def _check_mapping(
    given: Mapping[str, str], names: Mapping[str, str | None], band: str | None
) -> None:
    """Refuse a mapping of unknown fields or to unknown columns."""
    known = {*SPELLINGS, "mag", "mag_error", *BANDS, band}
    for what, name in given.items():
        if what not in known:
            fields = ", ".join(sorted(k for k in known if k))
            raise ConfigError(f"a catalogue has no field {what!r}: map one of {fields}")
        year = what == "epoch" and name.replace(".", "", 1).isdigit()
        if name not in names and not year:
            raise ConfigError(_complaint(f"{what} = {name!r}", names))


def _band_column(names: Mapping[str, str | None], band: str) -> str | None:
    """Column of a band; case counts, for Gaia's G is not g."""
    spellings = (
        band,
        f"{band}_mag",
        f"{band}mag",
        f"mag_{band}",
        f"{band}PSFMag",
        f"psfMag_{band}",
        f"{band}MeanPSFMag",
        f"{band}_psf",
    )
    return next((s for s in spellings if s in names), None)


def _magnitude_column(
    names: Mapping[str, str | None], given: Mapping[str, str], band: str | None
) -> tuple[str, bool]:
    """Column of the magnitude, and whether it is of the band asked for."""
    if "mag" in given:
        # Gaia's G is nobody's band, whoever maps it.
        return given["mag"], band is None or given["mag"] not in GAIA_G
    # A replaced filter keeps its letter: HSC's r2 is r, for a catalogue.
    for wanted in (band, band.rstrip("0123456789")) if band else ():
        column = given.get(wanted) or _band_column(names, wanted)
        if column:
            return column, True
    others = [*GAIA_G, "mag", "MAG", "Mag", "magnitude"]
    others += [c for b in BANDS if (c := given.get(b) or _band_column(names, b))]
    column = next((name for name in others if name in names), None)
    if column is None:
        raise ConfigError(_complaint("a magnitude", names))
    return column, band is None


def _error_column(lower: Mapping[str, str], mag: str) -> str | None:
    """Column with the error of a magnitude."""
    stem = mag.lower()
    spellings = (f"{stem}_err", f"{stem}_error", f"e_{stem}", f"{stem}err", f"sig{stem}")
    return next((lower[s] for s in spellings if s in lower), None)


def _colour_columns(lower: Mapping[str, str], mapped: str | None, mag: str) -> tuple[str, ...]:
    """The column of a colour, or two that make one, or nothing."""
    if mapped:
        return (mapped,)
    spelled = [(name,) for name in SPELLINGS["colour"].split()]
    # With G goes BP - RP, whatever other colours there are.
    for columns in (*(GAIA_COLOURS if mag in GAIA_G else ()), *spelled, *COLOUR_PAIRS):
        if all(name in lower for name in columns):
            return tuple(lower[name] for name in columns)
    return ()

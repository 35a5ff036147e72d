"""docs/products.md and the products say the same of cards, columns, units and bits."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import fitsio
import pytest
from product_forms import CCD, calibrated
from simulated_night import Night

from prepipe.calibrate.flags import Mask, SourceFlag
from prepipe.codec.cards import keyword_of
from prepipe.codec.fits_bytes import scan_fits

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/products.md").read_text()
SOURCE = "".join(path.read_text() for path in (ROOT / "src/prepipe").rglob("*.py"))

# What describes the structure of an HDU, which the FITS standard documents.
STRUCTURE = re.compile(
    r"COMMENT|SIMPLE|XTENSION|BITPIX|NAXIS\d*|EXTEND|PCOUNT|GCOUNT|TFIELDS|T(TYPE|FORM|UNIT)\d+"
    r"|Z(IMAGE|TENSION|BITPIX|NAXIS\d*|PCOUNT|GCOUNT|TILE\d|CMPTYPE|NAME\d|VAL\d|QUANTIZ)"
)


@dataclass(frozen=True)
class Row:
    """A row of the page; `when` is empty for what every good product has."""

    unit: str
    when: str = ""


def rows_under(*header: str) -> Iterator[list[str]]:
    """Cells of every table with these headings."""
    lines = iter(PAGE.splitlines())
    for line in lines:
        if [cell.strip() for cell in line.strip("|").split("|")] == list(header):
            next(lines)
            for row in lines:
                if not row.startswith("|"):
                    break
                yield [cell.strip().strip("`") for cell in row.strip("|").split("|")]


CARDS = {r[0]: Row(r[1], r[2]) for r in rows_under("card", "unit", "when", "meaning")}
COLUMNS = {r[0]: Row(r[1]) for r in rows_under("column", "unit", "meaning")}
FITTED = {r[0]: Row(r[1]) for r in rows_under("column of profiles", "unit", "meaning")}
PLANES = {r[0]: Row(r[2]) for r in rows_under("plane", "pixels", "unit", "what it holds")}


def spelled(keyword: str) -> str:
    """``PV1_7`` as the page has it: ``PVi_m``."""
    families = {
        r"PV\d_\d+": "PVi_m",
        r"CD\d_\d": "CDi_j",
        r"(CTYPE|CUNIT|CRVAL|CRPIX)\d": r"\1i",
        r"([AB]P?)_\d_\d": r"\1_i_j",
        r"(WHY|QFLAG|BIT)\d+": r"\1n",
        r"(FWHM|ELL[12])_\d": r"\1_n",
    }
    for family, name in families.items():
        if re.fullmatch(family, keyword):
            return re.sub(family, name, keyword)
    return keyword


def written(product: Path, raw: Path) -> dict[str, str]:
    """Cards that were not copied from the raw file, as the page spells them, with their units."""
    copied = {card for span in scan_fits(raw) for card in span.cards}
    table = product.with_name(product.name.replace(".fits.fz", ".cat.fits"))
    found = {}
    for path in (product, table):
        for span in scan_fits(path):
            for card in span.cards:
                # Of planes but the first, and of the table, nothing was copied.
                ours = span.index > 1 or path == table or card not in copied
                if ours and not STRUCTURE.fullmatch(keyword_of(card)):
                    unit = re.search(rb"/ \[(\S+)\] ", card)
                    found[spelled(keyword_of(card))] = unit[1].decode() if unit else ""
    return found


@pytest.fixture(scope="module")
def usual(night: Night) -> Path:
    return Path(night.outcomes[CCD].reduction.product)


@pytest.fixture(scope="module")
def unusual(night: Night, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not solved, from a packet, with SIP and fitted profiles."""
    products = tmp_path_factory.mktemp("unusual") / "products"
    outcome = calibrated(night, products, solved=False, photometry="psf", wcs="sip")
    return Path(outcome.reduction.product)


@pytest.mark.parametrize("which", ["usual", "unusual"])
def test_every_card_is_documented_with_its_unit(
    which: str, request: pytest.FixtureRequest, night: Night
) -> None:
    found = written(request.getfixturevalue(which), night.raw)
    assert set(found) - set(CARDS) == set(), "add a row to docs/products.md"
    for card, unit in found.items():
        if unit:
            assert CARDS[card].unit == unit, card


def test_every_documented_card_is_written(night: Night, usual: Path, unusual: Path) -> None:
    always = {card for card, row in CARDS.items() if not row.when}
    assert always - set(written(usual, night.raw)) == set(), "say when, or take it off the page"
    seen = {*written(usual, night.raw), *written(unusual, night.raw)}
    sometimes = {card for card, row in CARDS.items() if row.when}
    assert {card for card in sometimes - seen if f'"{card}"' not in SOURCE} == set()


def units_of_columns(product: Path) -> dict[str, str]:
    catalogue = product.with_name(product.name.replace(".fits.fz", ".cat.fits"))
    with fitsio.FITS(str(catalogue)) as stream:
        names = stream["SOURCES"].get_colnames()
        header = stream["SOURCES"].read_header()
    return {name: header.get(f"TUNIT{n}", "") for n, name in enumerate(names, start=1)}


def test_every_column_is_documented_with_its_unit_and_written(usual: Path, unusual: Path) -> None:
    documented = {name: row.unit for name, row in COLUMNS.items()}
    assert documented == units_of_columns(usual)
    documented |= {name: row.unit for name, row in FITTED.items()}
    assert documented == units_of_columns(unusual)


def test_every_plane_is_documented_with_its_unit(usual: Path) -> None:
    units = {
        str(span.value("EXTNAME")): str(span.value("BUNIT") or "") for span in scan_fits(usual)[1:]
    }
    assert {name: row.unit for name, row in PLANES.items()} == units


@pytest.mark.parametrize(
    ("heading", "bits"),
    [
        (("bit of MASK", "name", "what is wrong"), Mask),
        (("bit of FLAGS", "name", "what disturbed the measurement"), SourceFlag),
    ],
    ids=["MASK", "FLAGS"],
)
def test_every_bit_is_documented(
    heading: tuple[str, ...], bits: type[Mask] | type[SourceFlag]
) -> None:
    assert {int(r[0]): r[1] for r in rows_under(*heading)} == {bit.value: bit.name for bit in bits}


def test_every_row_tells_a_meaning() -> None:
    rows = [
        *rows_under("card", "unit", "when", "meaning"),
        *rows_under("column", "unit", "meaning"),
    ]
    likewise = {"B_ORDER", "AP_ORDER", "BP_ORDER"}
    assert {row[0] for row in rows if not row[-1]} <= likewise

"""Writing a source table: a FITS binary table, made in memory and written in one go.

A library opens, extends and reopens the file, which takes longer than to measure the sources.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prepipe.codec.cards import join_cards, make_card, padding_to_block
from prepipe.codec.checksums import with_new_sums
from prepipe.engines.products import PRIMARY, SUMS, Card, is_tellable, value_card
from prepipe.errors import PixelError
from prepipe.files import atomic_write

__all__ = ["write_table"]

_FORMS = {"bool": "L", "int16": "I", "int32": "J", "int64": "K", "float32": "E", "float64": "D"}
"""TFORMn of each type; FITS Standard 4.0, section 7.3.3."""


def write_table(
    path: Path, columns: Mapping[str, tuple[NDArray[Any], str]], cards: Iterable[Card]
) -> None:
    """Write a source table.

    Parameters
    ----------
    path : Path
    columns : mapping
        Name to (values, unit); bool, integers or floats of one length.
    cards : iterable of (keyword, value, comment)

    Raises
    ------
    PixelError
        If a column is of another type.
    StorageError
        If it cannot be written.
    """
    table = _rows(columns)
    units = [unit for _, unit in columns.values()]
    header = [*_structure(table, units), make_card("EXTNAME", "SOURCES", "name of this table")]
    header += [value_card(*card) for card in cards if is_tellable(card[1])]
    header += SUMS
    data = table.tobytes()
    data += bytes(padding_to_block(len(data)))
    with atomic_write(path) as stream:
        first = join_cards(with_new_sums([*PRIMARY, *SUMS], b""))
        stream.writelines([first, join_cards(with_new_sums(header, data)), data])


def _rows(columns: Mapping[str, tuple[NDArray[Any], str]]) -> NDArray[np.void]:
    """The columns as the rows that FITS stores: big-endian, truth as the letters T and F."""
    stored = {name: values for name, (values, _) in columns.items()}
    for name, values in stored.items():
        if values.dtype.name not in _FORMS:
            raise PixelError(f"column {name} is {values.dtype}, which no table holds: convert it")
        if values.dtype == np.bool_:
            stored[name] = np.where(values, np.uint8(ord("T")), np.uint8(ord("F")))
    kinds = [(name, values.dtype.newbyteorder(">")) for name, values in stored.items()]
    count = len(next(iter(stored.values()), ()))
    table = np.empty(count, kinds)
    for name, values in stored.items():
        table[name] = values
    return table


def _structure(table: NDArray[np.void], units: list[str]) -> list[bytes]:
    """Cards that describe the table."""
    assert table.dtype.names is not None
    cards = [
        make_card("XTENSION", "BINTABLE", "binary table extension"),
        make_card("BITPIX", 8, "8-bit bytes"),
        make_card("NAXIS", 2, "2-dimensional binary table"),
        make_card("NAXIS1", table.dtype.itemsize, "width of table in bytes"),
        make_card("NAXIS2", len(table), "number of rows in table"),
        make_card("PCOUNT", 0, "no heap"),
        make_card("GCOUNT", 1, "one data group"),
        make_card("TFIELDS", len(table.dtype.names), "number of fields in each row"),
    ]
    for number, (name, unit) in enumerate(zip(table.dtype.names, units, strict=True), start=1):
        # truth was made letters, the only bytes there are
        kind = table.dtype[name].newbyteorder("=").name
        form = "L" if kind == "uint8" else _FORMS[kind]
        cards += [make_card(f"TTYPE{number}", name), make_card(f"TFORM{number}", form)]
        if unit:
            cards.append(make_card(f"TUNIT{number}", unit))
    return cards

"""Headers of one image in two forms: as a plain image and as a table of Rice tiles.

Only the cards that describe the structure change; every other card stays byte for byte
where it was. Names of the cards: FITS Standard 4.0, section 10.1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from prepipe.codec.cards import (
    CardValue,
    card_value,
    join_cards,
    keyword_of,
    make_card,
    replace_value,
    split_cards,
)
from prepipe.codec.fits_bytes import HduSpan
from prepipe.codec.tiles import RICE_BLOCK, RiceTable

__all__ = ["funpack_header", "image_cards", "rice_cards", "with_cards", "without_data"]

_STRUCTURE = re.compile(
    r"SIMPLE|XTENSION|BITPIX|NAXIS\d*|PCOUNT|GCOUNT|EXTEND|BLOCKED|CHECKSUM|DATASUM"
)
_TABLE = re.compile(
    r"XTENSION|BITPIX|NAXIS\d*|PCOUNT|GCOUNT|TFIELDS|THEAP|CHECKSUM|DATASUM"
    r"|T(TYPE|FORM|UNIT|NULL|SCAL|ZERO|DIM|DISP)\d+"
    r"|Z(IMAGE|SIMPLE|TENSION|EXTEND|BLOCKED|BITPIX|NAXIS\d*|PCOUNT|GCOUNT|TILE\d+|CMPTYPE"
    r"|NAME\d+|VAL\d+|QUANTIZ|DITHER0|MASKCMP|SCALE|ZERO|HECKSUM|DATASUM)"
)
_CORE = re.compile(
    r"XTENSION|BITPIX|NAXIS\d*|PCOUNT|GCOUNT|TFIELDS|T(TYPE|FORM)\d+"
    r"|Z(IMAGE|SIMPLE|TENSION|EXTEND|BLOCKED|BITPIX|NAXIS\d*|PCOUNT|GCOUNT)"
)
_OTHER_COMPRESSION = re.compile(
    r"THEAP|T(TYPE|FORM|UNIT|NULL|SCAL|ZERO|DIM|DISP)([2-9]|\d\d+)"
    r"|Z(QUANTIZ|DITHER0|MASKCMP|SCALE|ZERO|NAME([3-9]|\d\d+)|VAL([3-9]|\d\d+))"
)


def image_cards(span: HduSpan) -> list[bytes]:
    """Cards of an image HDU as if it were not compressed.

    Parameters
    ----------
    span : HduSpan

    Returns
    -------
    list of bytes
        Without END and without checksums, which would speak of another form.
    """
    if not span.compressed:
        return [card for card in span.cards if keyword_of(card) not in ("CHECKSUM", "DATASUM")]
    axes = range(1, len(span.image_shape) + 1)
    first = "ZSIMPLE" if span.has("ZSIMPLE") and not span.has("ZTENSION") else "ZTENSION"
    wanted = [first, "ZBITPIX", "ZNAXIS", *(f"ZNAXIS{axis}" for axis in axes)]
    own = {keyword_of(card): card for card in reversed(span.cards)}
    cards = [_renamed(own[name], _plain_name(name)) for name in wanted if name in own]
    if first not in own:
        cards.insert(0, make_card("XTENSION", "IMAGE", "image extension"))
    if first == "ZTENSION":
        cards += [make_card("PCOUNT", 0), make_card("GCOUNT", 1)]
    return cards + [card for card in span.cards if not _TABLE.fullmatch(keyword_of(card))]


def rice_cards(span: HduSpan, table: RiceTable, bytes_per_pixel: int) -> list[bytes]:
    """Cards for `table`, made of those of the HDU its pixels come from.

    Parameters
    ----------
    span : HduSpan
        Plain or compressed in any way.
    table : RiceTable
    bytes_per_pixel : int
        1, 2 or 4.

    Returns
    -------
    list of bytes
        Without END; DATASUM and CHECKSUM, where there are any, still have to be set.
    """
    fresh = _structure(span, table, bytes_per_pixel)
    if span.compressed:
        kept = [card for card in span.cards if not _OTHER_COMPRESSION.fullmatch(keyword_of(card))]
        return with_cards(kept, fresh, after="TFIELDS")
    cards = _table_head(span, fresh)
    cards += [card for card in span.cards if not _STRUCTURE.fullmatch(keyword_of(card))]
    if span.has("CHECKSUM"):
        cards.append(make_card("CHECKSUM", "0" * 16, "HDU checksum"))
    if span.has("DATASUM"):
        cards.append(make_card("DATASUM", "0", "data unit checksum"))
    return cards


def funpack_header(header: bytes) -> bytes:
    """Header unit of a compressed image in an order that funpack can read.

    funpack (cfitsio 4) copies the cards one by one, so that a card before the last of those
    that describe the image lands before XTENSION, and it gives up (status 252). astropy
    writes BSCALE and BZERO there, and both ZSIMPLE and ZTENSION into some files. Such cards
    go behind the structure; moving whole cards leaves CHECKSUM valid. A header in order is
    given back byte for byte.
    """
    cards = split_cards(header)
    names = [keyword_of(card) for card in cards]
    if "ZTENSION" in names and "ZSIMPLE" in names:
        cards = [card for card in cards if keyword_of(card) != "ZSIMPLE"]
        names.remove("ZSIMPLE")
    core = [_CORE.fullmatch(name) is not None for name in names]
    end = len(core) - core[::-1].index(True) if "ZIMAGE" in names else 0
    if all(core[:end]) and len(cards) == len(split_cards(header)):
        return header
    first = [card for card, in_core in zip(cards[:end], core, strict=False) if in_core]
    strays = [card for card, in_core in zip(cards[:end], core, strict=False) if not in_core]
    return join_cards(first + strays + cards[end:])


def without_data(header: bytes) -> bytes:
    """A primary header unit whose data are left behind; verbatim if it has none."""
    if HduSpan(0, 0, header, 0).value("NAXIS") == 0:
        return header
    dropped = re.compile(r"NAXIS\d+|BZERO|BSCALE|BLANK|PCOUNT|GCOUNT|GROUPS|CHECKSUM|DATASUM")
    kept = [card for card in split_cards(header) if not dropped.fullmatch(keyword_of(card))]
    return join_cards(with_cards(kept, {"BITPIX": 8, "NAXIS": 0}, after="SIMPLE"))


def with_cards(cards: list[bytes], values: Mapping[str, CardValue], after: str) -> list[bytes]:
    """The cards with other values; cards that are right already are not touched.

    Parameters
    ----------
    cards : list of bytes
    values : mapping
        Keyword and value.
    after : str
        Keyword after which a card is put in that was not there; each goes after the one
        before it in `values`.
    """
    changed = list(cards)
    for keyword, value in values.items():
        places = [place for place, card in enumerate(changed) if keyword_of(card) == keyword]
        if not places:
            anchors = [place for place, card in enumerate(changed) if keyword_of(card) == after]
            changed.insert(anchors[0] + 1 if anchors else 0, make_card(keyword, value))
        elif card_value(changed[places[0]]) != value:
            changed[places[0]] = replace_value(changed[places[0]], value)
        after = keyword
    return changed


def _structure(span: HduSpan, table: RiceTable, bytes_per_pixel: int) -> dict[str, CardValue]:
    """Cards of a table of Rice tiles that depend on the table."""
    columns = span.image_shape[1]
    return {
        "NAXIS1": 8,
        "NAXIS2": table.rows,
        "PCOUNT": table.heap_bytes,
        "GCOUNT": 1,
        "TFIELDS": 1,
        "TTYPE1": "COMPRESSED_DATA",
        "TFORM1": f"1PB({table.max_tile})",
        "ZTILE1": columns,
        "ZTILE2": 1,
        "ZCMPTYPE": "RICE_1",
        "ZNAME1": "BLOCKSIZE",
        "ZVAL1": RICE_BLOCK,
        "ZNAME2": "BYTEPIX",
        "ZVAL2": bytes_per_pixel,
    }


def _table_head(span: HduSpan, fresh: Mapping[str, CardValue]) -> list[bytes]:
    """First cards of a table that holds what was a plain image.

    Either ZSIMPLE or ZTENSION is written, never both: cfitsio then restores a header
    that begins twice, and refuses it.
    """
    cards = [
        make_card("XTENSION", "BINTABLE", "binary table extension"),
        make_card("BITPIX", 8, "8-bit bytes"),
        make_card("NAXIS", 2, "2-dimensional binary table"),
    ]
    table = ("NAXIS1", "NAXIS2", "PCOUNT", "GCOUNT", "TFIELDS", "TTYPE1", "TFORM1")
    cards += [make_card(keyword, fresh[keyword]) for keyword in table]
    cards.append(make_card("ZIMAGE", True, "extension contains compressed image"))
    cards += [
        _renamed(card, _table_name(keyword_of(card)))
        for card in span.cards
        if _STRUCTURE.fullmatch(keyword_of(card))
    ]
    cards += [make_card(name, value) for name, value in fresh.items() if name not in table]
    return cards


def _table_name(keyword: str) -> str:
    names = {"XTENSION": "ZTENSION", "CHECKSUM": "ZHECKSUM"}
    return names.get(keyword, f"Z{keyword}")


def _plain_name(keyword: str) -> str:
    return "XTENSION" if keyword == "ZTENSION" else keyword[1:]


def _renamed(card: bytes, keyword: str) -> bytes:
    return keyword.ljust(8).encode("ascii") + card[8:]

"""The 80-byte cards of a FITS header, as bytes: read, changed in place, and put back.

What is not touched stays as the observatory wrote it: order, comments, HIERARCH,
blank cards and strings such as ``'NaN'``. astropy rewrites cards it finds odd, so it
is used to read values, never to carry headers. Form of the cards: FITS Standard 4.0,
sections 4.1 to 4.3.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from astropy.io.fits import Card, Header

from prepipe.errors import FitsError

__all__ = [
    "BLOCK",
    "CARD",
    "CardValue",
    "card_value",
    "header_from_cards",
    "join_cards",
    "keyword_of",
    "make_card",
    "padding_to_block",
    "replace_value",
    "split_cards",
]

BLOCK = 2880
CARD = 80

_END = b"END".ljust(CARD)
_VALUE_COLUMN = 10

_STRING = re.compile(r"'((?:[^']|'')*)'")
_INTEGER = re.compile(r"[+-]?[0-9]{1,19}")
_REAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[EDed][+-]?[0-9]{1,3})?")
_USUAL = re.compile(
    rb" *(?:'(?:[^']|'')*'|[TF]|[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[EDed][+-]?[0-9]{1,3})?)?"
    rb" *(?:/.*)?"
)
"""Value and comment as nearly all cards have them."""

CardValue = bool | int | float | str


def padding_to_block(length: int) -> int:
    """Bytes that are missing from `length` to a whole number of 2880-byte blocks."""
    return -length % BLOCK


def split_cards(header: bytes) -> list[bytes]:
    """Cards of a header unit, each 80 bytes, up to but without END.

    Raises
    ------
    FitsError
        If there is no END card.
    """
    cards = [header[start : start + CARD] for start in range(0, len(header), CARD)]
    try:
        return cards[: cards.index(_END)]
    except ValueError:
        raise FitsError(
            "the header has no END card: the file is truncated or no FITS; fetch it again"
        ) from None


def join_cards(cards: Iterable[bytes]) -> bytes:
    """Header unit of `cards`: END added, padded with blanks to 2880 bytes."""
    unit = b"".join(cards) + _END
    return unit + b" " * padding_to_block(len(unit))


def keyword_of(card: bytes) -> str:
    """Keyword in the first eight columns, without its trailing blanks."""
    return card[:8].decode("latin-1").rstrip()


def card_value(card: bytes) -> CardValue | None:
    """Value of a card, None if it has none or if it follows no FITS rule."""
    if card[8:_VALUE_COLUMN] != b"= ":
        return None
    text = card[_VALUE_COLUMN:].decode("latin-1").strip()
    if text.startswith("'"):
        found = _STRING.match(text)
        return found[1].replace("''", "'").rstrip() if found else None
    word = text.partition("/")[0].strip()
    if word in ("T", "F"):
        return word == "T"
    if _INTEGER.fullmatch(word):
        return int(word)
    if _REAL.fullmatch(word):
        return float(word.upper().replace("D", "E"))
    return None


def make_card(keyword: str, value: CardValue, comment: str = "") -> bytes:
    """Card in fixed format; the comment is cut where the card ends.

    Raises
    ------
    FitsError
        If keyword or value do not fit into one card.
    """
    text = f"{keyword:<8}= {_fixed(value)}"
    if len(keyword) > 8 or len(text) > CARD or not text.isascii():
        raise FitsError(f"{keyword} = {value!r} does not fit into one card; shorten it")
    if comment:
        text = f"{text} / {comment}"
    return text[:CARD].ljust(CARD).encode("ascii", "replace")


def replace_value(card: bytes, value: CardValue) -> bytes:
    """The same card with another value; its comment and its column are kept."""
    comment = _comment_of(card)
    fresh = make_card(keyword_of(card), value).rstrip()
    if not comment:
        return fresh.ljust(CARD)
    column = max(card.rfind(comment), len(fresh) + 1)
    return (fresh.ljust(column) + comment)[:CARD].ljust(CARD)


def header_from_cards(cards: Iterable[bytes]) -> Header:
    """astropy Header of `cards`; bytes outside ASCII become question marks.

    Cards whose value makes no sense are left out: astropy would raise when it is asked for.
    """
    readable = b"".join(card for card in cards if _is_readable(card))
    return Header.fromstring(readable.decode("ascii", "replace").replace("\ufffd", "?"))


def _is_readable(card: bytes) -> bool:
    if card[8:10] != b"= " or _USUAL.fullmatch(card, 10):
        return True
    try:
        _ = Card.fromstring(card).value
    except Exception:  # astropy raises whatever an odd value leads it to
        return False
    return True


def _fixed(value: CardValue) -> str:
    if isinstance(value, bool):
        return f"{'T' if value else 'F':>20}"
    if isinstance(value, str):
        quoted = value.replace("'", "''")
        return f"'{quoted:<8}'".ljust(20)
    if isinstance(value, float):
        return f"{value:>20.10G}"
    return f"{value:>20d}"


def _comment_of(card: bytes) -> bytes:
    """The comment with its slash, b"" if there is none."""
    text = card[_VALUE_COLUMN:]
    string = re.match(rb"\s*'(?:[^']|'')*'", text)
    slash = text.find(b"/", string.end() if string else 0)
    return text[slash:].rstrip() if slash >= 0 else b""

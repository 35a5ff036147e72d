"""Payloads of the wavelet codec that were written once, and what they decode to.

They stand for all packets that sites keep: whatever changes in the code, they must decode to
these very pixels, on every machine. A new version of the format gets new ones beside them.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

DATA = Path(__file__).parent / "data"


class Answer(NamedTuple):
    """A payload by its file's name, and the xxh3-128 of its pixels."""

    name: str
    shape: tuple[int, int]
    dtype: str
    pixels: str


ANSWERS = (
    Answer("wavelet1_two_amplifiers", (96, 120), "uint16", "6d966b96fdd825bd380515f0c3703a9f"),
    Answer("wavelet1_filled", (64, 90), "uint16", "6a179f9350a62ee4635b8fc281e97196"),
    Answer("wavelet1_odd_signed", (61, 75), "int16", "29333500d58e24569e4ab15c27c06bb7"),
    Answer("wavelet1_stars", (110, 124), "uint16", "3927a8ded3f5eeb544e2f9df240ed9fb"),
)

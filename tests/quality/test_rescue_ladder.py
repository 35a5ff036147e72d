"""The rescue ladder: who may tell a failed CCD where it looked, and in what order."""

from __future__ import annotations

from prepipe.quality.rescue import Pointing, rescue_hints

FAILED = Pointing(exposure=100, ccd=25, field="COSMOS", shift=None)


def solved(exposure: int, ccd: int, field: str = "COSMOS", shift: float = 10.0) -> Pointing:
    return Pointing(exposure, ccd, field, (shift, -shift))


def rungs(*others: Pointing) -> list[tuple[str, bool]]:
    return [(hint.rung, hint.relaxed) for hint in rescue_hints(FAILED, others)]


def test_nobody_who_solved_means_no_hint() -> None:
    assert rungs(FAILED, Pointing(100, 26, "COSMOS", None)) == []


def test_each_rung_is_tried_as_usual_and_then_relaxed() -> None:
    assert rungs(solved(101, 25), solved(100, 27), solved(100, 60)) == [
        ("same CCD, other exposures", False),
        ("same CCD, other exposures", True),
        ("neighbouring CCDs", False),
        ("neighbouring CCDs", True),
        ("any CCD of the exposure", False),
        ("any CCD of the exposure", True),
    ]


def test_the_same_ccd_counts_only_nearby_and_in_the_same_field() -> None:
    assert rungs(solved(107, 25)) == []
    assert rungs(solved(101, 25, field="elsewhere")) == []
    assert rungs(solved(106, 25)) != []


def test_neighbours_are_fewer_than_three_numbers_away() -> None:
    assert rungs(solved(100, 27))[0] == ("neighbouring CCDs", False)
    assert rungs(solved(100, 28))[0] == ("any CCD of the exposure", False)


def test_the_hint_is_the_mean_of_those_who_tell() -> None:
    first = rescue_hints(FAILED, [solved(99, 25, shift=8.0), solved(101, 25, shift=12.0)])[0]
    assert (first.east_arcsec, first.north_arcsec) == (10.0, -10.0)

"""When packing becomes stronger, and when it comes back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prepipe.codec.wavelet_loss import PRESETS
from prepipe.config import Pack
from prepipe.telescope.adaptive import (
    RATIOS,
    RELEASE,
    Adaptation,
    Limits,
    LineSpeed,
    PacketSizes,
    next_preset,
)

ORDER = list(PRESETS)
ALL = Limits("precise", "faint-link", 120.0)


@st.composite
def limits(draw: st.DrawFn) -> Limits:
    mildest, strongest = sorted(draw(st.tuples(*[st.integers(0, 2)] * 2)))
    return Limits(ORDER[mildest], ORDER[strongest], draw(st.floats(0.1, 1e4)))


presets = st.sampled_from(ORDER)
backlogs = st.none() | st.floats(0.0, 1e7)


@given(presets, backlogs, limits())
def test_the_preset_never_leaves_the_limits(
    current: str, backlog_s: float | None, allowed: Limits
) -> None:
    place = ORDER.index(next_preset(current, backlog_s, allowed))
    assert ORDER.index(allowed.mildest) <= place <= ORDER.index(allowed.strongest)


@given(presets, st.floats(0.0, 1e7), limits())
def test_a_step_is_not_taken_back_for_what_it_does_to_the_same_backlog(
    current: str, backlog_s: float, allowed: Limits
) -> None:
    current = next_preset(current, None, allowed)
    stepped = next_preset(current, backlog_s, allowed)
    after = next_preset(stepped, backlog_s * RATIOS[current] / RATIOS[stepped], allowed)
    direction = ORDER.index(stepped) - ORDER.index(current)
    assert direction * (ORDER.index(after) - ORDER.index(stepped)) >= 0


@given(presets, limits())
def test_without_a_backlog_it_returns_to_the_sites_own(current: str, allowed: Limits) -> None:
    for _ in ORDER:
        current = next_preset(current, 0.0, allowed)
    assert current == allowed.mildest


@given(presets, st.floats(1.01, 1e4), limits())
def test_a_backlog_that_stays_leads_to_the_strongest(
    current: str, times: float, allowed: Limits
) -> None:
    for _ in ORDER:
        current = next_preset(current, times * allowed.backlog_s, allowed)
    assert current == allowed.strongest


@given(presets, st.floats(RELEASE, 1.0))
def test_between_the_two_limits_nothing_changes(current: str, part: float) -> None:
    assert next_preset(current, part * ALL.backlog_s, ALL) == current


def test_presets_stand_from_the_mildest_to_the_strongest() -> None:
    assert list(RATIOS) == ORDER
    assert sorted(PRESETS, key=lambda name: PRESETS[name].scatter) == ORDER


@pytest.mark.parametrize("settings", [{}, {"strongest": "fast"}, {"codec": "none"}])
def test_a_site_that_says_nothing_packs_by_one_preset(settings: dict[str, object]) -> None:
    assert Limits.of(Pack.model_validate(settings)) is None


def test_the_lines_speed_is_that_of_the_time_in_which_packets_wait() -> None:
    speed = LineSpeed()
    speed.look(0.0, is_full=True)
    for second in range(1, 11):
        speed.sent(1000)
        speed.look(float(second), is_full=True)
    speed.look(10.0, is_full=False)
    speed.sent(5)
    speed.look(500.0, is_full=True)
    assert speed.bytes_per_s == pytest.approx(1000, rel=0.02)


def test_what_crosses_while_nothing_waits_tells_nothing_of_the_line() -> None:
    speed = LineSpeed()
    for second in range(10):
        speed.look(float(second), is_full=False)
        speed.sent(1)
    assert speed.bytes_per_s is None


def test_the_lines_speed_is_not_known_by_one_packet() -> None:
    speed = LineSpeed()
    speed.look(0.0, is_full=True)
    speed.sent(1000)
    speed.look(1.0, is_full=True)
    assert speed.bytes_per_s is None


def test_the_lines_speed_follows_a_line_that_becomes_slower() -> None:
    speed = LineSpeed()
    for second in range(600):
        speed.look(float(second), is_full=True)
        speed.sent(1000 if second < 300 else 100)
    assert speed.bytes_per_s == pytest.approx(100, rel=0.1)


def test_packets_of_another_preset_are_expected_in_proportion() -> None:
    sizes = PacketSizes()
    assert sizes.expected("fast") == 0.0
    sizes.note("fast", 1_000_000)
    sizes.note("", 6_000_000)
    assert sizes.expected("faint-link") == pytest.approx(1e6 * 18 / 27)
    assert sizes.expected("") == 6_000_000


def test_what_waits_is_told_in_seconds_of_the_line_when_the_preset_changes() -> None:
    adaptation = Adaptation(Limits("fast", "faint-link", 120.0))
    adaptation.speed.look(0.0, is_full=True)
    for second in range(1, 11):
        adaptation.sizes.note("fast", 1_000_000)
        adaptation.speed.sent(1_000_000)
        adaptation.speed.look(float(second), is_full=True)
    assert adaptation.look(10_000_000, [True] * 100) == ""
    told = adaptation.look(10_000_000, [True] * 200)
    assert adaptation.preset == "faint-link"
    assert "faint-link now" in told
    assert "210 s at 8 Mbit/s, more than 120 s" in told
    assert "fast now, no longer by faint-link" in adaptation.look(0, [])

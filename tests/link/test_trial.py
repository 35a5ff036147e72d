"""A link that is measured, over a real SSH server."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from private_sshd import PrivateSshd
from ssh_links import FAR
from wan import Wan, need_wan

from prepipe.errors import LinkError
from prepipe.link import trial as trial_module
from prepipe.link.trial import Step, try_link


def test_a_trial_tells_what_was_carried_and_leaves_nothing_there(
    sshd: PrivateSshd, tmp_path: Path
) -> None:
    steps: list[Step] = []
    trial = try_link(sshd.settings(tmp_path), 3.0, (1, 2), steps.append)
    assert [step.connections for step in steps] == [1, 2]
    assert trial.steps == tuple(steps)
    assert all(step.mbit_s > 50 and step.rtt_s > 0 for step in steps)
    assert trial.rate > max(step.mbit_s for step in steps)
    assert trial.free_bytes > 0
    assert list(tmp_path.iterdir()) == []


def test_the_rate_of_a_long_line_is_told(tmp_path: Path) -> None:
    need_wan()
    landing = tmp_path / "landing"
    landing.mkdir()
    with Wan(tmp_path / "wan", rtt=240, rate=100) as wan:
        settings = wan.settings(landing, command=FAR)
        with ThreadPoolExecutor(1, initializer=wan.at_telescope().__enter__) as near:
            trial = near.submit(try_link, settings, 6.0, (2, 8)).result()
    assert trial.rate == pytest.approx(100, rel=0.2)
    assert trial.steps[0].rtt_s == pytest.approx(0.24, rel=0.2)


def test_what_opens_in_part_is_told_as_what_it_was(
    sshd: PrivateSshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_module, "_PATIENCE_S", 0.0)
    trial = try_link(sshd.settings(tmp_path), 2.0, (16, 32))
    assert [step.connections < 16 for step in trial.steps] == [True]
    assert "could be opened" in trial.notices[-1]


@pytest.mark.parametrize("spell_s", [1.0, 2.0])
def test_what_counts_is_the_best_spell(spell_s: float) -> None:
    speeds = [0, 0, 1, 1, 1, 1, 1, 0, 0, 0]
    samples = [(0.5 * i, sum(speeds[:i]) * 500_000) for i in range(11)]
    assert trial_module._best_mbit_s(samples, spell_s) == pytest.approx(8.0)


def test_what_cannot_be_reached_is_told_in_a_sentence(sshd: PrivateSshd, tmp_path: Path) -> None:
    with pytest.raises(LinkError, match="no SSH server answers there"):
        try_link(sshd.settings(tmp_path, port=1), 3.0, (1,))

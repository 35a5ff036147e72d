"""A link that is measured, over a real SSH server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from private_sshd import PrivateSshd, need_sshd

from prepipe.errors import LinkError
from prepipe.link.trial import Step, try_link


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateSshd]:
    need_sshd()
    server = PrivateSshd(tmp_path_factory.mktemp("sshd"))
    server.start()
    yield server
    server.kill()


def test_a_trial_tells_what_was_carried_and_leaves_nothing_there(
    sshd: PrivateSshd, tmp_path: Path
) -> None:
    steps: list[Step] = []
    trial = try_link(sshd.settings(tmp_path), 3.0, (1, 2), steps.append)
    assert [step.connections for step in steps] == [1, 2]
    assert trial.steps == tuple(steps)
    assert all(step.mbit_s > 1 and step.rtt_s > 0 for step in steps)
    assert trial.rate > max(step.mbit_s for step in steps)
    assert trial.free_bytes > 0
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_reached_is_told_in_a_sentence(sshd: PrivateSshd, tmp_path: Path) -> None:
    with pytest.raises(LinkError, match="no SSH server answers there"):
        try_link(sshd.settings(tmp_path, port=1), 3.0, (1,))

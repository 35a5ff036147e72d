"""What `prepipe doctor` says of the far end of an ssh link, over a real SSH server."""

from __future__ import annotations

from pathlib import Path

import pytest
from private_sshd import PrivateSshd
from ssh_links import FAR

from prepipe.cli import checks
from prepipe.cli.checks import Check, State, check_link
from prepipe.config import Site


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loaded machine starts programs slowly."""
    monkeypatch.setattr(checks, "ANSWER_WITHIN_S", 60.0)


def checked(sshd: PrivateSshd, landing: Path) -> Check:
    return check_link(Site(link=sshd.settings(landing, command=FAR)))


def test_a_landing_directory_that_can_be_written_is_well_and_stays_empty(
    sshd: PrivateSshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "NO_SPACE_GB", 0.0)
    monkeypatch.setattr(checks, "LOW_SPACE_GB", 0.0)
    check = checked(sshd, tmp_path)
    assert check.state is State.OK
    assert "packets can land" in check.found
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("landing", ["/proc", "/no/such/directory"])
def test_a_landing_directory_that_cannot_be_written_is_a_failure_that_says_why(
    sshd: PrivateSshd, landing: str
) -> None:
    check = checked(sshd, Path(landing))
    assert check.state is State.FAILURE
    assert "packets cannot land there" in check.found
    assert landing in check.found


def test_a_disk_there_that_is_nearly_full_is_a_failure(
    sshd: PrivateSshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "NO_SPACE_GB", 1e9)
    check = checked(sshd, tmp_path)
    assert check.state is State.FAILURE
    assert "free some space" in check.remedy

"""Several pushes on one raw directory: they divide the exposures, or feed two clusters."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from telescope_end import CAMERA, RecordingLink, wait_until
from tiny_raw import packet_names, quick_site, write_raw

from prepipe.codec.packet import verify
from prepipe.config import Method
from prepipe.errors import LinkError
from prepipe.model import Stage
from prepipe.store import CcdKey, Journal
from prepipe.telescope import Event, Happening, Push, Report

CCDS = range(1, 6)
PACKET = "decam_00000001_25.packet"


class Host:
    """A push with a directory of its own, on a raw directory that it shares."""

    def __init__(
        self,
        root: Path,
        name: str,
        *,
        landing: str = "landing",
        share: str | None = "share",
        codec: str = "none",
    ) -> None:
        sections = {
            "telescope": {"work": name, "takeover_s": 1.0, "share": share},
            "link": {"landing": landing},
            "pack": {"codec": codec},
        }
        self.site = quick_site(root, **sections)
        self.journal = Journal(self.site.telescope.work / "journal.sqlite")
        self.link = RecordingLink(self.site.link.landing)
        self.events: list[Event] = []

    def push(self) -> Report:
        return Push(self.site, self.journal, self.link, CAMERA, self.events.append).run(once=True)

    def use_method(self, method: Method) -> None:
        push = self.site.push.model_copy(update={"method": method})
        self.site = self.site.model_copy(update={"push": push})


@pytest.fixture
def two_hosts(tmp_path: Path) -> Iterator[tuple[Host, Host]]:
    """Two that share, with one small exposure to send."""
    write_raw(tmp_path / "raw", 1)
    hosts = Host(tmp_path, "one"), Host(tmp_path, "two")
    yield hosts
    for host in hosts:
        host.journal.close()


@contextmanager
def processes(root: Path, *names: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    program = str(Path(__file__).with_name("push_victim.py"))
    running = [
        subprocess.Popen([sys.executable, program, root, name], stdout=subprocess.DEVNULL)
        for name in names
    ]
    try:
        wait_until(lambda: len(list(root.glob("*.ready"))) == len(names), 60)
        (root / "go").touch()
        yield running
    finally:
        for process in running:
            process.kill()
            process.wait()
        for mark in (root / "go", *root.glob("*.ready")):
            mark.unlink(missing_ok=True)


def assert_every_packet_once(root: Path, wanted: set[str]) -> None:
    landing = root / "landing"
    assert {path.name for path in landing.glob("*.packet")} == wanted
    for name in wanted:
        verify(landing / name)
    assert max(Counter((root / "sent.log").read_text().split()).values()) == 1


def assert_knows_all(work: Path, count: int) -> None:
    journal = Journal(work / "journal.sqlite")
    assert Counter(row.stage for row in journal.rows()) == {Stage.SENT: count}
    journal.close()


def has_sent(work: Path) -> bool:
    """Whether a host has sent something itself."""
    journal = Journal(work / "journal.sqlite")
    sent = [row for row in journal.rows(Stage.SENT) if row.seconds.get("sent", 0.0) > 0.0]
    journal.close()
    return bool(sent)


def is_in_the_middle(work: Path) -> bool:
    """Whether a host has sent something itself and waits with more."""
    journal = Journal(work / "journal.sqlite")
    waits = journal.rows(Stage.PACKED)
    journal.close()
    return bool(waits) and has_sent(work)


@pytest.mark.parametrize("names", [("one", "two"), ("one", "two", "three")])
def test_hosts_divide_the_exposures_and_send_none_twice(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    numbers = range(1, 13)
    for number in numbers:
        write_raw(tmp_path / "raw", number, CCDS)
    with processes(tmp_path, *names) as running:
        for process in running:
            assert process.wait(120) == 0
    assert_every_packet_once(tmp_path, packet_names(numbers, CCDS))
    for name in names:
        assert_knows_all(tmp_path / name, len(numbers) * len(CCDS))
        assert has_sent(tmp_path / name)


@pytest.mark.parametrize("names", [("one", "two"), ("one", "two", "three")])
def test_what_a_killed_host_had_is_taken_over_and_nothing_is_sent_twice(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    numbers = range(1, 13)
    for number in numbers:
        write_raw(tmp_path / "raw", number, CCDS)
    with processes(tmp_path, *names) as (victim, *others):
        wait_until(lambda: is_in_the_middle(tmp_path / names[0]), 60)
        victim.send_signal(signal.SIGKILL)
        assert victim.wait() == -signal.SIGKILL
        for process in others:
            assert process.wait(120) == 0
    assert_every_packet_once(tmp_path, packet_names(numbers, CCDS))
    for name in names[1:]:
        assert_knows_all(tmp_path / name, len(numbers) * len(CCDS))


def test_a_killed_host_that_starts_again_sends_nothing_that_was_taken_over(tmp_path: Path) -> None:
    numbers = range(1, 9)
    for number in numbers:
        write_raw(tmp_path / "raw", number, CCDS)
    with processes(tmp_path, "one", "two") as (victim, other):
        wait_until(lambda: is_in_the_middle(tmp_path / "one"), 60)
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        assert other.wait(120) == 0
    with processes(tmp_path, "one") as (again,):
        assert again.wait(120) == 0
    assert_every_packet_once(tmp_path, packet_names(numbers, CCDS))
    assert_knows_all(tmp_path / "one", len(numbers) * len(CCDS))


def test_what_another_host_has_sent_counts_as_sent_and_says_by_whom(
    tmp_path: Path, two_hosts: tuple[Host, Host]
) -> None:
    one, two = two_hosts
    assert one.push().sent == 3
    report = two.push()
    assert (report.succeeded, report.sent, report.waiting) == (True, 0, 0)
    assert {row.stage for row in two.journal.rows()} == {Stage.SENT}
    name = (tmp_path / "one" / "share.name").read_text().strip()
    assert {row.reason for row in two.journal.rows()} == {f"sent by {name}"}
    assert two.journal.transfers() == []


@pytest.mark.parametrize("codec", ["none", "wavelet"])
def test_every_host_makes_the_same_packet_of_a_ccd(tmp_path: Path, codec: str) -> None:
    write_raw(tmp_path / "raw", 1)
    made = []
    for name in ("one", "two"):
        host = Host(tmp_path, name, landing=f"cluster-{name}", share=None, codec=codec)
        assert host.push().sent == 3
        made.append({path.name: path.read_bytes() for path in host.link.landing.iterdir()})
        host.journal.close()
    assert made[0] == made[1]


def test_what_the_far_side_has_of_a_dead_host_is_not_sent_again(
    tmp_path: Path, two_hosts: tuple[Host, Host]
) -> None:
    one, two = two_hosts
    one.push()
    # as if it had been killed when one packet had arrived
    (claim,) = (tmp_path / "share").rglob("*.claim")
    claim.write_bytes(claim.read_bytes().replace(b"done", b"held"))
    lost = ["decam_00000001_01.packet", PACKET]
    for name in lost:
        (tmp_path / "landing" / name).unlink()
    report = two.push()
    assert (report.succeeded, report.sent, report.already_there) == (True, 3, 1)
    assert sorted(two.link.sent) == lost
    assert [event.what for event in two.events].count(Happening.TAKEN_OVER) == 1


def test_a_ccd_that_its_operator_returns_is_sent_again_by_whichever_host(
    two_hosts: tuple[Host, Host],
) -> None:
    one, two = two_hosts
    one.push()
    two.push()
    two.journal.return_to(CcdKey("decam", 1, 25), Stage.FOUND)
    assert two.push().sent == 1
    assert two.link.sent == [PACKET]


def test_end_of_night_at_one_host_sends_what_is_missing_of_anothers(
    tmp_path: Path, two_hosts: tuple[Host, Host]
) -> None:
    one, two = two_hosts
    one.push()
    two.push()
    (tmp_path / "landing" / PACKET).unlink()
    two.use_method(Method.END_OF_NIGHT)
    assert two.push().sent == 1
    assert two.link.sent == [PACKET]


def test_what_a_host_packed_and_another_sent_is_neither_sent_nor_archived_by_it(
    tmp_path: Path,
) -> None:
    write_raw(tmp_path / "raw", 1)
    one, two = Host(tmp_path, "one", codec="wavelet"), Host(tmp_path, "two")
    one.link.fault = lambda: LinkError("host: no way to it")
    assert one.push().sent == 0
    assert len(one.journal.rows(Stage.PACKED)) == 3
    assert two.push().sent == 3
    one.link.fault = lambda: None
    one.push()
    one.use_method(Method.END_OF_NIGHT)
    report = one.push()
    assert (report.succeeded, report.sent, one.link.sent) == (True, 0, [])
    assert one.journal.originals() == []
    for host in (one, two):
        host.journal.close()


def test_a_share_that_goes_away_is_waited_for(tmp_path: Path, two_hosts: tuple[Host, Host]) -> None:
    one, _ = two_hosts
    (tmp_path / "share").write_text("no directory")
    report = one.push()
    assert (report.sent, report.waiting) == (0, 3)
    assert "share" in report.failures[0].reason
    (tmp_path / "share").unlink()
    assert one.push().sent == 3


def test_one_telescope_feeds_two_clusters_each_on_its_own(tmp_path: Path) -> None:
    for number in (1, 2):
        write_raw(tmp_path / "raw", number)
    near = Host(tmp_path, "near", landing="cluster-near", share=None)
    far = Host(tmp_path, "far", landing="cluster-far", share=None)
    for host in (near, far):
        report = host.push()
        assert (report.succeeded, report.sent) == (True, 6)
        assert set(host.link.inventory()) == packet_names([1, 2])
    near.journal.return_to(CcdKey("decam", 1, 25), Stage.FOUND)
    assert near.push().sent == 1
    assert far.push().sent == 0
    for host in (near, far):
        host.journal.close()

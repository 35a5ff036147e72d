"""Several hosts divide the exposures: who may send what, and what becomes of a dead one's."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from journal_rows import row

from prepipe.errors import StorageError
from prepipe.telescope.claims import SharedClaims, host_name

EXPOSURE = row(1, 1).exposure
OTHER_EXPOSURE = row(2, 1).exposure
TAKEOVER_S = 60.0

Hosts = tuple["Host", "Host", "Host"]


class Host:
    """A host with a clock of its own; its heart beats only when it is told to."""

    def __init__(self, share: Path, name: str) -> None:
        self.now = 0.0
        self.claims = SharedClaims(share, name, TAKEOVER_S, lambda: self.now)

    def takes(self, *, again: bool = False) -> bool:
        return self.claims.take(EXPOSURE, again=again).ours

    def finds_dead(self) -> bool:
        """Look for as long as it takes to be sure."""
        self.claims.take(EXPOSURE)
        self.now += TAKEOVER_S + 1.0
        return self.takes()

    def stop(self) -> None:
        with self.claims:
            self.takes()


@pytest.fixture
def share(tmp_path: Path) -> Path:
    return tmp_path / "share"


@pytest.fixture
def hosts(share: Path) -> Hosts:
    return Host(share, "one"), Host(share, "two"), Host(share, "three")


def test_only_one_host_has_an_exposure(hosts: Hosts) -> None:
    one, two, _ = hosts
    assert one.takes()
    assert not two.takes()
    assert one.takes()
    assert two.claims.take(OTHER_EXPOSURE).ours


def test_of_many_that_try_at_the_same_moment_one_gets_it(share: Path) -> None:
    hosts = [Host(share, f"host{number}") for number in range(16)]
    with ThreadPoolExecutor(16) as pool:
        took = list(pool.map(Host.takes, hosts))
    assert sum(took) == 1


def test_a_claim_that_is_renewed_is_not_taken_over(hosts: Hosts) -> None:
    one, two, _ = hosts
    one.takes()
    for _ in range(5):
        two.now += 0.7 * TAKEOVER_S
        one.claims.beat()
        assert not two.takes()


def test_a_claim_that_stays_unchanged_is_taken_over(hosts: Hosts) -> None:
    one, two, _ = hosts
    one.takes()
    assert not two.takes()
    two.now += 0.9 * TAKEOVER_S
    assert not two.takes()
    two.now += 0.2 * TAKEOVER_S
    standing = two.claims.take(EXPOSURE)
    assert (standing.ours, standing.owner, standing.inherited) == (True, "one", True)


def test_who_was_taken_over_from_notices_when_it_comes_back(hosts: Hosts) -> None:
    one, two, _ = hosts
    one.takes()
    assert two.finds_dead()
    assert not one.takes()
    one.claims.beat()
    assert two.takes()


def test_of_many_that_find_a_dead_claim_at_the_same_moment_one_gets_it(share: Path) -> None:
    Host(share, "dead").takes()
    hosts = [Host(share, f"host{number}") for number in range(16)]
    for host in hosts:
        assert not host.takes()
        host.now += TAKEOVER_S + 1.0
    with ThreadPoolExecutor(16) as pool:
        took = list(pool.map(Host.takes, hosts))
    assert sum(took) == 1


def test_who_comes_late_to_a_dead_claim_waits_for_the_new_owner(hosts: Hosts) -> None:
    one, two, three = hosts
    one.takes()
    three.takes()
    assert two.finds_dead()
    three.now += TAKEOVER_S + 1.0
    assert not three.takes()


@pytest.mark.parametrize("at", [0, 4_000_000_000])
def test_the_times_of_files_and_the_clocks_of_hosts_do_not_count(
    share: Path, hosts: Hosts, at: int
) -> None:
    one, two, _ = hosts
    two.now = 1e9
    one.takes()
    (claim,) = share.rglob("*.claim")
    os.utime(claim, (at, at))
    assert not two.takes()
    two.now += 0.9 * TAKEOVER_S
    assert not two.takes()


def test_an_exposure_that_is_done_is_left_alone(hosts: Hosts) -> None:
    one, two, _ = hosts
    one.takes()
    one.claims.finish(EXPOSURE)
    standing = two.claims.take(EXPOSURE)
    assert (standing.ours, standing.done, standing.owner) == (False, True, "one")
    two.now += 10 * TAKEOVER_S
    assert two.claims.take(EXPOSURE).done


def test_what_is_to_be_sent_once_more_is_sent_by_one_of_them(hosts: Hosts) -> None:
    one, two, _ = hosts
    one.takes()
    one.claims.finish(EXPOSURE)
    assert two.takes(again=True)
    assert not one.takes(again=True)
    two.claims.finish(EXPOSURE)
    one.now += 0.5 * TAKEOVER_S
    assert one.claims.take(EXPOSURE, again=True).done


def test_what_a_host_did_long_ago_another_may_send_once_more(hosts: Hosts) -> None:
    one, two, _ = hosts
    one.takes()
    two.takes(again=True)
    one.claims.finish(EXPOSURE)
    two.now += 2 * TAKEOVER_S
    assert two.takes(again=True)


def test_a_host_that_stops_lets_others_have_at_once_what_is_not_done(hosts: Hosts) -> None:
    one, two, _ = hosts
    one.stop()
    standing = two.claims.take(EXPOSURE)
    assert (standing.ours, standing.inherited) == (True, True)


def test_a_host_that_was_killed_has_its_own_back_at_once_when_it_starts_again(
    share: Path, hosts: Hosts
) -> None:
    one, two, _ = hosts
    one.takes()
    assert Host(share, "one").takes()
    assert not two.takes()


def test_a_claim_whose_maker_was_killed_while_it_wrote_is_taken_over_in_time(
    share: Path, hosts: Hosts
) -> None:
    one, two, _ = hosts
    one.takes()
    (claim,) = share.rglob("*.claim")
    claim.write_bytes(b"")
    assert not two.takes()
    two.now += TAKEOVER_S + 1.0
    assert two.takes()


def test_a_heart_beats_by_itself(share: Path) -> None:
    quick = SharedClaims(share, "one", 0.06)
    with quick:
        quick.take(EXPOSURE)
        (claim,) = share.rglob("*.claim")
        seen = {claim.read_bytes()}
        while len(seen) < 3:
            seen.add(claim.read_bytes())


def test_a_share_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file"):
        Host(tmp_path / "file", "one").takes()


def test_a_host_bears_the_same_name_at_every_start_and_another_bears_another(
    tmp_path: Path,
) -> None:
    name = host_name(tmp_path / "one")
    assert host_name(tmp_path / "one") == name
    assert host_name(tmp_path / "two") != name

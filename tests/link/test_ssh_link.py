"""The ssh link at work, over a real SSH server."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from private_sshd import PrivateSshd
from receiving import NAME
from ssh_links import (
    are_there,
    clients,
    count,
    far_script,
    in_background,
    linked,
    logins,
    packet,
    packets,
    receivers,
    send_all,
    wait_for,
    wait_until_open,
)

from prepipe.errors import LinkError, PacketError, StorageError
from prepipe.files import content_checksum
from prepipe.link import Held, connection, open_link, pool, tuning
from prepipe.link.connection import Connection, State
from prepipe.link.protocol import MAX_FILE_BYTES
from prepipe.link.sockets import SocketState
from prepipe.link.ssh import SshLink


@pytest.fixture
def landing(tmp_path: Path) -> Path:
    path = tmp_path / 'far side "quoted"' / "landing"
    path.mkdir(parents=True)
    return path


@pytest.fixture
def link(sshd: PrivateSshd, landing: Path) -> Iterator[SshLink]:
    with linked(sshd, landing) as opened:
        yield opened


def test_a_packet_arrives_whole_and_leaves_no_partial_file(
    link: SshLink, landing: Path, here: Path
) -> None:
    sent = packet(here)
    link.send(sent)
    assert are_there(landing, [sent])


def test_sixty_packets_arrive_bit_for_bit_over_connections_that_are_kept(
    sshd: PrivateSshd, landing: Path, here: Path
) -> None:
    before = logins(sshd)
    sent = packets(here, 60)
    with linked(sshd, landing, connections=4) as link:
        wait_until_open(link, 4)
        send_all(link, sent[:30])
        send_all(link, sent[30:])
    assert are_there(landing, sent)
    assert logins(sshd) == before + 4


def test_a_packet_of_the_same_name_replaces_the_one_that_is_there(
    link: SshLink, landing: Path, here: Path
) -> None:
    link.send(packet(here))
    again = packet(here, seed=1)
    link.send(again)
    assert are_there(landing, [again])


def test_a_packet_that_was_registered_already_does_not_land_again(
    link: SshLink, landing: Path, here: Path
) -> None:
    sent = packet(here)
    link.send(sent)
    done = landing / "done" / "2020-03-05"
    done.mkdir(parents=True)
    (landing / NAME).rename(done / NAME)
    link.send(sent)
    assert [path.name for path in landing.iterdir()] == ["done"]


def test_an_original_lands_in_the_archive(link: SshLink, landing: Path, here: Path) -> None:
    sent = packet(here)
    link.send(sent, place="archive")
    assert are_there(landing / "archive", [sent])


def test_an_urgent_packet_overtakes_a_bulky_one_that_is_under_way(
    sshd: PrivateSshd, landing: Path, here: Path
) -> None:
    bulk = packet(here, "decam_00000001_01.packet", 5_000_000)
    urgent = packet(here, "decam_00000002_01.packet", 400_000)
    with linked(sshd, landing, rate=20.0) as link:
        wait_until_open(link, 2)
        first = in_background(link, bulk)
        wait_for(lambda: 0 < link.state().queued_bytes < 5_000_000)
        link.send(urgent, urgency=1)
        assert not (landing / bulk.name).exists()
        first.result()
    assert are_there(landing, [bulk, urgent])


def test_senders_of_different_urgency_share_the_link(
    link: SshLink, landing: Path, here: Path
) -> None:
    sent = packets(here, 12)
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(link.send, sent, [n % 3 for n in range(12)]))
    assert are_there(landing, sent)


def test_two_senders_may_bring_the_same_packet_at_once(
    sshd: PrivateSshd, link: SshLink, landing: Path, here: Path
) -> None:
    sent = packet(here, size=2_000_000)
    with linked(sshd, landing) as other:
        both = [in_background(each, sent) for each in (link, other, link)]
        for each in both:
            each.result()
    assert are_there(landing, [sent])


def test_of_two_contents_under_one_name_one_is_there_whole(
    sshd: PrivateSshd, link: SshLink, landing: Path, here: Path
) -> None:
    one = packet(here / "one", size=2_000_000, seed=1)
    two = packet(here / "two", size=2_000_000, seed=2)
    with linked(sshd, landing) as other:
        both = in_background(link, one), in_background(other, two)
        for each in both:
            each.result()
    assert [path.name for path in landing.iterdir()] == [NAME]
    assert (landing / NAME).read_bytes() in (one.read_bytes(), two.read_bytes())


def test_the_inventory_tells_sizes_and_checksums_of_what_is_there(
    link: SshLink, landing: Path, here: Path
) -> None:
    registered = packet(landing / "done" / "2020-03-05", "decam_00941419_01.packet", 1024)
    packet(landing / "rejected", "decam_00941418_01.packet")
    packet(landing, ".decam_00941417_01.packet.0123abcd.part")
    sent = packet(here)
    link.send(sent)
    assert link.inventory() == {
        NAME: Held(sent.stat().st_size, content_checksum(sent)),
        registered.name: Held(1024, content_checksum(registered)),
    }
    assert list(link.inventory(since=941420)) == [NAME]


def test_several_may_ask_for_the_inventory_at_a_time(link: SshLink, landing: Path) -> None:
    packets(landing, 3)
    with ThreadPoolExecutor(4) as pool:
        found = [each.result() for each in [pool.submit(link.inventory) for _ in range(4)]]
    assert all(len(each) == 3 for each in found)


@pytest.mark.parametrize("name", ["../evil.packet", "-rm.packet", "a b.packet", "x.fits"])
def test_a_name_that_is_no_packets_is_refused_before_anything_is_connected(
    sshd: PrivateSshd, link: SshLink, here: Path, name: str
) -> None:
    with pytest.raises(PacketError):
        link.send(here / name)
    assert link.state().connections == ()


def test_what_cannot_be_a_packet_is_refused_here(link: SshLink, here: Path) -> None:
    with pytest.raises(PacketError, match="0 bytes"):
        link.send(packet(here, size=0))
    large = here / "decam_00000001_01.packet"
    with large.open("wb") as stream:
        stream.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(PacketError, match=r"4,294,967,297 bytes.*pack it again"):
        link.send(large)
    (here / "decam_00000002_01.packet").mkdir()
    with pytest.raises(PacketError, match="no plain file"):
        link.send(here / "decam_00000002_01.packet")


def test_a_packet_that_vanished_is_no_fault_of_the_link(link: SshLink, here: Path) -> None:
    with pytest.raises(StorageError, match="does not exist"):
        link.send(here / NAME)


def test_a_packet_that_vanishes_while_it_is_sent_arrives_all_the_same(
    sshd: PrivateSshd, landing: Path, here: Path
) -> None:
    sent = packet(here, size=2_000_000)
    with linked(sshd, landing, rate=20.0) as link:
        sending = in_background(link, sent)
        wait_for(lambda: 0 < link.state().queued_bytes < 2_000_000)
        kept = sent.rename(here / "kept")
        kept.unlink()
        sending.result()
    assert (landing / NAME).stat().st_size == 2_000_000


def test_a_packet_that_shrinks_while_it_is_sent_is_told_and_never_gets_its_name(
    sshd: PrivateSshd, landing: Path, here: Path
) -> None:
    sent = packet(here, size=2_000_000)
    with linked(sshd, landing, rate=20.0) as link:
        sending = in_background(link, sent)
        wait_for(lambda: 0 < link.state().queued_bytes < 2_000_000)
        with sent.open("r+b") as stream:
            stream.truncate(10)
        with pytest.raises(StorageError, match="changed while it was sent"):
            sending.result()
        assert not (landing / NAME).exists()
        link.send(packet(here, size=5000))
    assert (landing / NAME).stat().st_size == 5000


def test_a_packet_that_is_rewritten_while_it_is_sent_is_told_and_never_gets_its_name(
    sshd: PrivateSshd, landing: Path, here: Path
) -> None:
    sent = packet(here, size=2_000_000)
    with linked(sshd, landing, rate=20.0) as link:
        sending = in_background(link, sent)
        wait_for(lambda: 0 < link.state().queued_bytes < 2_000_000)
        with sent.open("r+b") as stream:
            stream.seek(1_999_000)
            stream.write(b"something else")
        with pytest.raises(StorageError, match="changed while it was sent"):
            sending.result()
    assert not (landing / NAME).exists()


def test_closing_lets_go_of_all_who_wait_and_leaves_no_process(
    sshd: PrivateSshd, landing: Path, here: Path
) -> None:
    threads = threading.active_count()
    with linked(sshd, landing, rate=4.0) as link:
        wait_until_open(link, 2)
        waiting = [in_background(link, each) for each in packets(here, 5, 1_000_000)]
        wait_for(lambda: link.state().queued_bytes < 5_000_000)
        link.close()
        for each in waiting:
            with pytest.raises(LinkError, match="the link was closed"):
                each.result(2.0)
        assert clients() == []
        wait_for(lambda: not receivers(landing))
        with pytest.raises(LinkError, match="the link was closed"):
            link.send(packet(here))
        with pytest.raises(LinkError, match="the link was closed"):
            link.inventory()
    wait_for(lambda: threading.active_count() <= threads)


def test_a_link_may_be_closed_twice_and_before_it_was_opened(
    sshd: PrivateSshd, landing: Path
) -> None:
    with linked(sshd, landing) as link:
        link.close()
        link.close()
        assert link.state().connections == ()


def test_a_link_that_is_closed_while_it_connects_leaves_no_process(
    sshd: PrivateSshd, landing: Path, tmp_path: Path
) -> None:
    command = far_script(tmp_path, "import time\ntime.sleep(600)\n")
    with linked(sshd, landing, command=command) as link:
        link.open()
        wait_for(clients)
    assert clients() == []


def test_the_state_tells_connections_queue_speed_and_time_left(
    sshd: PrivateSshd, landing: Path, here: Path
) -> None:
    with linked(sshd, landing, rate=20.0) as link:
        assert link.state().connections == ()
        assert link.state().eta_s == 0.0
        wait_until_open(link, 2)
        sending = in_background(link, packet(here, size=4_000_000))
        wait_for(lambda: link.state().mbit_s > 1.0)
        state = link.state()
        assert 0 < state.queued_bytes < 4_000_000
        assert state.eta_s is not None and 0.1 < state.eta_s < 100
        assert state.rate == 20.0
        assert state.trouble == ""
        assert sum(each.in_flight for each in state.connections) > 0
        sending.result()
        wait_for(lambda: all(0 < each.rtt_s < 10 for each in link.state().connections))
        assert sum(each.sent_bytes for each in link.state().connections) == 4_000_000
        assert link.state().queued_bytes == 0


def test_asking_for_the_state_is_cheap(link: SshLink, here: Path) -> None:
    link.send(packet(here))
    before = time.thread_time()
    for _ in range(1000):
        link.state()
    assert time.thread_time() - before < 1.0


def test_a_link_that_has_nothing_to_do_does_next_to_nothing(
    sshd: PrivateSshd, landing: Path
) -> None:
    with linked(sshd, landing, connections=8) as link:
        wait_until_open(link, 8)
        time.sleep(0.5)
        before = threads_switched()
        began = time.monotonic()
        time.sleep(2.0)
        # ten looks a second of the pool, one of each connection, and a ping with its answer;
        # counted, not timed: a loaded machine makes fewer of them, not more
        assert threads_switched() - before < 100 * (time.monotonic() - began)


def threads_switched() -> int:
    """How often the threads of this process have gone to sleep by themselves."""
    told = [path.read_text() for path in Path("/proc/self/task").glob("*/status")]
    lines = [line for text in told for line in text.splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("voluntary"))


def test_the_clock_of_the_far_side_is_looked_at(
    sshd: PrivateSshd, landing: Path, here: Path, tmp_path: Path
) -> None:
    code = (
        "import time\nreal = time.time\ntime.time = lambda: real() - 300\n"
        "from prepipe.cli import main\nmain()\n"
    )
    with linked(sshd, landing, command=far_script(tmp_path, code)) as link:
        link.send(packet(here))
        wait_for(lambda: link.notices)
        told = " ".join(link.notices)
    assert "300 s behind" in told
    assert "chrony" in told


def test_where_the_kernel_refuses_twice_the_connections_keep_the_pace_by_their_own_clock(
    sshd: PrivateSshd, landing: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "use_congestion_control", lambda *_: False)
    monkeypatch.setattr(tuning, "pace", lambda *_: False)
    with linked(sshd, landing, connections=None, rate=30.0) as link:
        wait_until_open(link, 4)
        told = " ".join(link.notices)
        began = time.monotonic()
        link.send(packet(here, size=3_000_000))
        assert time.monotonic() - began > 0.5 * 3_000_000 * 8 / 30e6
    assert len(link.notices) == 2
    assert "congestion control bbr" in told and "over 4 connections" in told
    assert "by its own clock" in told


def test_a_number_of_connections_that_was_set_is_kept_whatever_the_kernel_refuses(
    sshd: PrivateSshd, landing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "use_congestion_control", lambda *_: False)
    with linked(sshd, landing, connections=1) as link:
        wait_until_open(link, 1)
        wait_for(lambda: link.notices)
        time.sleep(0.5)
        assert len(link.state().connections) == 1


def wait_until_tuned(link: SshLink) -> None:
    """Until two connections are open, and have their share of the line."""
    wait_until_open(link, 2)
    wait_for(lambda: [each.share > 0 for each in link._pool.healthy()] == [True, True])


def heard(landing: Path) -> int:
    """Bytes that the far ends have read, some of them to start."""
    return sum(each.io_counters().read_chars for each in receivers(landing))


@pytest.fixture
def long_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line on which connections take long to get up to speed."""
    monkeypatch.setattr(tuning.Tuning, "starts_slowly", True)
    monkeypatch.setattr(pool, "_WARM_UP_S", 0.0)


@pytest.mark.usefixtures("long_line")
def test_what_is_sent_to_be_ready_without_bbr_lands_nowhere_and_makes_room_for_a_packet(
    sshd: PrivateSshd, landing: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "use_congestion_control", lambda *_: False)
    with linked(sshd, landing) as link:
        wait_until_tuned(link)
        before = heard(landing)
        link.prepare()
        wait_for(lambda: heard(landing) > before + 2_000_000)
        state = link.state()
        assert state.queued_bytes == state.mbit_s == 0
        assert [each.sent_bytes for each in state.connections] == [0, 0]
        assert list(landing.iterdir()) == []
        sent = packet(here)
        link.send(sent)
        assert are_there(landing, [sent])
        assert not link._dealer.makes_noise
        assert sum(each.sent_bytes for each in link.state().connections) == 600_000


@pytest.mark.usefixtures("long_line")
@pytest.mark.parametrize("has_copies", [True, False])
def test_with_bbr_nothing_is_sent_to_be_ready(
    sshd: PrivateSshd, landing: Path, monkeypatch: pytest.MonkeyPatch, has_copies: bool
) -> None:
    if has_copies:
        monkeypatch.setattr(tuning, "use_congestion_control", lambda *_: True)
    else:
        monkeypatch.setattr(connection, "sockets_of", lambda _: [])
        monkeypatch.setattr(tuning, "default_congestion_control", lambda: "bbr")
    with linked(sshd, landing) as link:
        wait_until_tuned(link)
        link.prepare()
        assert not link._dealer.makes_noise


def test_to_be_ready_a_link_connects(link: SshLink) -> None:
    link.prepare()
    wait_for(lambda: count(link.state(), "open") == 2)


@pytest.mark.parametrize("rate", [1.0, 400.0])
def test_nothing_is_sent_to_be_ready_where_it_would_only_be_in_the_way(
    sshd: PrivateSshd, landing: Path, monkeypatch: pytest.MonkeyPatch, rate: float
) -> None:
    """A chunk takes longer than connections need to get up to speed."""
    monkeypatch.setattr(tuning, "use_congestion_control", lambda *_: False)
    with linked(sshd, landing, rate=rate) as link:
        wait_until_tuned(link)
        link.prepare()
        assert not link._dealer.makes_noise


def test_once_all_are_open_they_are_brought_up_to_speed(
    sshd: PrivateSshd, landing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning.Tuning, "starts_slowly", True)
    monkeypatch.setattr(pool, "_WARM_UP_S", 60.0)
    with linked(sshd, landing) as link:
        wait_until_tuned(link)
        wait_for(lambda: heard(landing) > 20_000_000)


@pytest.fixture
def lossy(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """By descriptors of sockets that have lost packets, as their kernel is told: swift bytes."""
    chosen: dict[int, int] = {}
    genuine = connection.state_of

    def told(copy: socket.socket) -> SocketState | None:
        state = genuine(copy)
        if state is None or copy.fileno() not in chosen:
            return state
        return replace(state, retransmitted=3, swift_bytes=chosen[copy.fileno()])

    monkeypatch.setattr(connection, "state_of", told)
    monkeypatch.setattr(pool, "_AT_REST_S", 0.3)
    return chosen


def lose_on_all(link: SshLink, lossy: dict[int, int], swift_bytes: int = 0) -> list[Connection]:
    """The connections there are, which have lost packets from now on."""
    there = link._pool.healthy()
    lossy.update({each.fileno(): swift_bytes for one in there for each in one.sockets})
    if not lossy:
        pytest.skip("this kernel gives no copy of a child's sockets")
    return there


def test_without_bbr_connections_that_lost_packets_are_changed_for_fresh_ones(
    sshd: PrivateSshd,
    landing: Path,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    lossy: dict[int, int],
) -> None:
    monkeypatch.setattr(tuning, "use_congestion_control", lambda *_: False)
    with linked(sshd, landing) as link:
        wait_until_tuned(link)
        worn = lose_on_all(link, lossy)
        wait_for(lambda: worn[0].state == worn[1].state == State.OVER)
        lossy.clear()
        wait_for(lambda: count(link.state(), "open") == 2)
        sent = packet(here)
        link.send(sent)
    assert are_there(landing, [sent])


@pytest.mark.parametrize(
    "why", ["bbr", "few were lost", "something is under way", "something is expected"]
)
def test_connections_that_lost_packets_are_kept_if_they_are_swift_or_needed(
    sshd: PrivateSshd,
    landing: Path,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    lossy: dict[int, int],
    why: str,
) -> None:
    monkeypatch.setattr(tuning, "use_congestion_control", lambda *_: why == "bbr")
    monkeypatch.setattr(tuning.Tuning, "starts_slowly", why == "something is expected")
    with linked(sshd, landing, rate=4.0) as link:
        wait_until_tuned(link)
        if why == "something is under way":
            in_background(link, packet(here, size=4_000_000))
            wait_for(lambda: link.state().queued_bytes)
        elif why == "something is expected":
            link.prepare()
        there = lose_on_all(link, lossy, 1_000_000 if why == "few were lost" else 0)
        time.sleep(1.0)
        assert link._pool.healthy() == there


def test_those_that_are_open_share_the_whole_line(sshd: PrivateSshd, landing: Path) -> None:
    with linked(sshd, landing, connections=3, rate=100.0) as link:
        wait_until_open(link, 3)

        def total() -> float:
            return sum(each.share for each in link._pool.healthy())

        wait_for(lambda: total() == pytest.approx(0.97 * 100e6 / 8))
        for client in clients()[:2]:
            client.kill()
        wait_for(lambda: len(link._pool.healthy()) == 1)
        wait_for(lambda: total() == pytest.approx(0.97 * 100e6 / 8))


def test_a_rate_that_is_not_known_is_found(
    sshd: PrivateSshd, landing: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "_MEASURED_OVER_S", 0.3)
    with linked(sshd, landing, rate="auto") as link:
        wait_until_open(link, 2)
        began_with = link.state().rate
        sending = in_background(link, packet(here, size=40_000_000))
        wait_for(lambda: link.state().rate > began_with)
        sending.result()


def test_settings_choose_this_link(sshd: PrivateSshd, landing: Path) -> None:
    assert isinstance(open_link(sshd.settings(landing)), SshLink)


def test_a_server_that_lets_only_some_in_is_used_with_those_and_told(
    sshd: PrivateSshd,
    landing: Path,
    here: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pool, "_FEW_TRIES", 1)
    code = (
        "import os, sys, pathlib\n"
        f"seats = pathlib.Path({str(tmp_path)!r})\n"
        "for seat in ('seat0', 'seat1'):\n"
        "    try:\n"
        "        os.open(seats / seat, os.O_CREAT | os.O_EXCL)\n"
        "        break\n"
        "    except FileExistsError:\n"
        "        pass\n"
        "else:\n"
        "    sys.exit('Too many logins for this user.')\n"
        "from prepipe.cli import main\nmain()\n"
    )
    command = far_script(tmp_path, code)
    with linked(sshd, landing, command=command, connections=5) as link:
        link.send(packet(here))
        wait_for(lambda: link.notices)
        assert re.search("only [12] of 5 connections", link.notices[0])
        assert "Too many logins" in link.notices[0]
        link.send(packet(here, seed=1))
        wait_for(lambda: count(link.state(), "open") == 2)
        assert link.state().trouble == ""
    assert psutil.Process().children() == [] or clients() == []

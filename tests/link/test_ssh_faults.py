"""The ssh link while its parts are killed, stopped and cut off: nothing is lost or sent twice."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from private_sshd import PrivateSshd
from receiving import NAME
from ssh_links import (
    FAR,
    SOURCE,
    acknowledged,
    are_there,
    clients,
    count,
    far_script,
    in_background,
    linked,
    packet,
    packets,
    receivers,
    send_all,
    wait_for,
    wait_until_open,
)

from prepipe.errors import LinkError
from prepipe.link import tuning
from prepipe.link.connection import Connection
from prepipe.link.dealer import Task
from prepipe.link.protocol import CHUNK_BYTES
from prepipe.link.ssh import SshLink

SIZE = 6_000_000


SENDER = """
import sys, time, threading
from pathlib import Path
from prepipe import config
from prepipe.link.dealer import Task
from prepipe.link.protocol import CHUNK_BYTES
from prepipe.link.ssh import SshLink
link = SshLink(config.Link.model_validate_json(sys.argv[1]))
threading.Thread(target=link.send, args=(Path(sys.argv[2]),), daemon=True).start()
while True:
    print(sum(each.sent_bytes for each in link.state().connections), flush=True)
    time.sleep(0.02)
"""


def killed_in_the_middle(sshd: PrivateSshd, landing: Path, path: Path) -> int:
    """A sender of its own that is killed; gives the bytes that it knew to be there."""
    settings = sshd.settings(landing, command=FAR, connections=2, rate=40.0)
    with subprocess.Popen(
        [sys.executable, "-c", SENDER, settings.model_dump_json(), path],
        env={"PYTHONPATH": str(SOURCE), "PATH": "/usr/bin:/bin"},
        stdout=subprocess.PIPE,
        text=True,
    ) as sender:
        assert sender.stdout is not None
        while (sent := int(sender.stdout.readline())) < SIZE // 4:
            pass
        sender.kill()
        return max([sent, *(int(line) for line in sender.stdout.read().split("\n")[:-1])])


def test_a_sender_that_is_killed_and_started_again_sends_only_what_is_missing(
    sshd: PrivateSshd, landing: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    send = Connection._send

    def count_chunks(self: Connection, task: Task) -> None:
        if task.index is not None:
            sent.append(task.index)
        send(self, task)

    monkeypatch.setattr(Connection, "_send", count_chunks)
    path = packet(here, size=SIZE)
    before = killed_in_the_middle(sshd, landing, path)
    assert before < SIZE
    assert not (landing / NAME).exists()
    wait_for(lambda: not receivers(landing))
    with linked(sshd, landing) as link:
        link.send(path)
        assert 0 < acknowledged(link) <= SIZE - before
    assert len(sent) <= (SIZE - before) // CHUNK_BYTES + 1
    assert are_there(landing, [path])


def test_all_receivers_may_be_killed_while_they_write(
    sshd: PrivateSshd, landing: Path, here: Path
) -> None:
    sent = [packet(here, size=SIZE), *packets(here, 5)]
    with linked(sshd, landing, rate=40.0) as link:
        wait_until_open(link, 2)
        sending = [in_background(link, each) for each in sent]
        wait_for(lambda: acknowledged(link) > SIZE // 4)
        for receiver in receivers(landing):
            receiver.kill()
        for each in sending:
            each.result()
        assert acknowledged(link) <= sum(each.stat().st_size for each in sent)
    assert are_there(landing, sent)


def test_a_receiver_that_is_stopped_delays_nothing_for_long_and_is_replaced(
    sshd: PrivateSshd, landing: Path, here: Path
) -> None:
    path = packet(here, size=SIZE)
    with linked(sshd, landing, rate=40.0) as link:
        wait_until_open(link, 2)
        first = set(link._pool.connections)
        sending = in_background(link, path)
        wait_for(lambda: acknowledged(link) > SIZE // 4)
        stopped = receivers(landing)[0]
        stopped.suspend()
        try:
            sending.result()
            wait_for(lambda: len(first & set(link._pool.connections)) == 1)
            wait_for(lambda: count(link.state(), "open") == len(link.state().connections) == 2)
        finally:
            stopped.kill()
    assert are_there(landing, [path])


def test_a_silent_connection_is_kept_until_another_is_open(
    sshd: PrivateSshd, landing: Path, here: Path
) -> None:
    """If it is heard again before that, it goes on, and the one that came in vain is not needed."""
    with linked(sshd, landing, connections=1) as link:
        wait_until_open(link, 1)
        (first,) = link._pool.connections
        receiver = receivers(landing)[0]
        sshd.stop()
        receiver.suspend()
        try:
            wait_for(lambda: count(link.state(), "silent") == 1)
            wait_for(lambda: link._pool.trouble or count(link.state(), "opening"))
            assert first in link._pool.connections
        finally:
            receiver.resume()
        wait_for(lambda: count(link.state(), "open") == 1)
        sshd.start()
        link.send(packet(here))
        wait_for(lambda: link._pool.connections == (first,))


@pytest.mark.parametrize("away_s", [0.0, 1.5])
def test_traffic_is_back_soon_after_the_server_was_rebooted(
    sshd: PrivateSshd, landing: Path, here: Path, away_s: float
) -> None:
    path = packet(here, size=SIZE)
    with linked(sshd, landing, rate=40.0) as link:
        wait_until_open(link, 2)
        sending = in_background(link, path)
        wait_for(lambda: acknowledged(link) > SIZE // 4)
        sshd.kill()
        wait_for(lambda: count(link.state(), "open") == 0)
        time.sleep(away_s)
        assert not sending.done()
        if away_s:
            assert "no SSH server answers" in link.state().trouble
        sshd.start()
        sending.result()
        assert acknowledged(link) <= SIZE
    assert are_there(landing, [path])


def test_a_server_that_stays_away_is_an_error_once_patience_is_over_and_not_before(
    sshd: PrivateSshd, landing: Path, here: Path
) -> None:
    path = packet(here, size=SIZE)
    with linked(sshd, landing, timeout_s=1.0) as link:
        wait_until_open(link, 2)
        sshd.kill()
        try:
            began = time.monotonic()
            with pytest.raises(LinkError, match=r"127\.0\.0\.1.*no SSH server answers there"):
                link.send(path)
            assert time.monotonic() - began >= 0.9
            with pytest.raises(LinkError, match="no SSH server answers there"):
                link.inventory()
        finally:
            sshd.start()
        wait_for(lambda: has_sent(link, path))
    assert are_there(landing, [path])


def has_sent(link: SshLink, path: Path) -> bool:
    """Try once, as a push does time and again."""
    try:
        link.send(path)
    except LinkError:
        return False
    return True


def test_a_try_after_a_failure_sends_only_what_is_missing(
    sshd: PrivateSshd, landing: Path, here: Path
) -> None:
    with linked(sshd, landing, rate=40.0, timeout_s=1.0) as link:
        wait_until_open(link, 2)
        path = packet(here, size=SIZE)
        sending = in_background(link, path)
        wait_for(lambda: acknowledged(link) > SIZE // 4)
        sshd.kill()
        try:
            with pytest.raises(LinkError):
                sending.result()
        finally:
            sshd.start()
        wait_for(lambda: has_sent(link, path))
        assert acknowledged(link) <= SIZE
    assert are_there(landing, [path])


NOISE = """
import os, subprocess, sys
receive = subprocess.Popen([sys.executable, "-m", "prepipe", *sys.argv[1:]], stdout=subprocess.PIPE)
passed = 0
while data := os.read(receive.stdout.fileno(), 65536):
    os.write(1, data)
    passed += len(data)
    if passed > {after}:
        try:
            os.open({once!r}, os.O_CREAT | os.O_EXCL)
            os.write(1, {noise!r})
        except FileExistsError:
            pass
"""


def test_noise_in_the_middle_of_the_stream_costs_a_connection_and_nothing_else(
    sshd: PrivateSshd, landing: Path, here: Path, tmp_path: Path
) -> None:
    noise = b"\r\nBroadcast message from root: rebooting soon\xd7P\0"
    code = NOISE.format(after=400, once=str(tmp_path / "once"), noise=noise)
    path = packet(here, size=SIZE)
    with linked(sshd, landing, command=far_script(tmp_path, code)) as link:
        link.send(path)
        wait_for(lambda: (tmp_path / "once").exists() and link.notices)
        link.send(packet(here, "decam_00000001_01.packet"))
        assert any("something else writes in between" in each for each in link.notices)
        assert acknowledged(link) <= SIZE + 600_000
    assert (landing / NAME).read_bytes() == path.read_bytes()


def test_a_far_end_that_dies_again_and_again_is_not_asked_without_pause(
    sshd: PrivateSshd, landing: Path, here: Path, tmp_path: Path
) -> None:
    """The pauses between grow, whatever the machine does meanwhile."""
    born = tmp_path / "born"
    code = (
        f"import sys, time\nwith open({str(born)!r}, 'a') as stream:\n"
        "    stream.write(f'{time.monotonic()}\\n')\n"
        "import os, threading\nthreading.Timer(0.5, os._exit, (3,)).start()\n"
        "from prepipe.cli import main\nmain()\n"
    )
    with linked(sshd, landing, command=far_script(tmp_path, code), connections=1) as link:
        sending = in_background(link, packet(here, size=50_000_000))
        wait_for(lambda: born.exists() and len(born.read_text().split()) >= 5)
        link.close()
        with suppress(LinkError):
            sending.result()
    first, *_, before, last = (float(each) for each in born.read_text().split()[:5])
    assert last - first > 4 * 0.25, "no faster than connections are opened"
    assert last - before > 2.0, "a fourth life that was short costs a pause of four seconds"


def test_a_disk_that_does_not_commit_is_an_error_once_patience_is_over(
    sshd: PrivateSshd, landing: Path, here: Path, tmp_path: Path
) -> None:
    code = (
        "import os, time\nreal = os.fsync\n"
        f"os.fsync = lambda each: real(each) if os.path.exists({str(tmp_path / 'well')!r}) "
        "else time.sleep(600)\n"
        "from prepipe.cli import main\nmain()\n"
    )
    path = packet(here)
    with linked(sshd, landing, command=far_script(tmp_path, code), timeout_s=3.0) as link:
        with pytest.raises(LinkError, match=r"all of .* is there, but .* not verified and comm"):
            link.send(path)
        (tmp_path / "well").touch()
        for receiver in receivers(landing):
            receiver.kill()
        wait_for(lambda: has_sent(link, path))
    assert (landing / NAME).read_bytes() == path.read_bytes()


def test_a_packet_is_not_halted_by_a_client_that_is_killed(
    sshd: PrivateSshd, landing: Path, here: Path
) -> None:
    path = packet(here, size=SIZE)
    with linked(sshd, landing, rate=40.0, connections=3) as link:
        wait_until_open(link, 3)
        sending = in_background(link, path)
        for _ in range(3):
            known = acknowledged(link)
            wait_for(lambda known=known: acknowledged(link) > known)
            for client in clients()[:1]:
                client.send_signal(signal.SIGKILL)
        sending.result()
        assert acknowledged(link) <= SIZE
        wait_until_open(link, 3)
    assert are_there(landing, [path])


def test_nothing_that_a_client_started_is_left_behind_once_the_link_is_closed(
    sshd: PrivateSshd, landing: Path, tmp_path: Path
) -> None:
    """As the ssh of a ProxyJump, which notices nothing of the end of the one that began it."""
    proxy = tmp_path / "proxy"
    proxy.write_text("#!/bin/sh\ntrap '' HUP TERM\nwhile :; do sleep 1; done\n")
    proxy.chmod(0o755)
    options = (f"-oProxyCommand={proxy}", *sshd.settings(landing).options)
    with linked(sshd, landing, options=options) as link:
        link.open()
        wait_for(lambda: started_by(clients()))
        left = started_by(clients())
    try:
        wait_for(lambda: not any(each.is_running() for each in left))
    finally:
        for each in left:
            with suppress(psutil.NoSuchProcess):
                each.kill()


def started_by(processes: list[psutil.Process]) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return [child for each in processes for child in each.children(recursive=True)]
    return []


def test_no_ssh_to_be_started_is_waited_for_as_a_line_that_is_down(
    sshd: PrivateSshd, landing: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No process may be started for a while: too many, or no memory."""
    start = subprocess.Popen

    def refuse(*arguments: object, **options: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    with linked(sshd, landing, timeout_s=20.0) as link:
        wait_until_open(link, 2)
        monkeypatch.setattr(subprocess, "Popen", refuse)
        for receiver in receivers(landing):
            receiver.kill()
        wait_for(lambda: "cannot be started" in link.state().trouble)
        sending = in_background(link, packet(here))
        monkeypatch.setattr(subprocess, "Popen", start)
        sending.result()
    assert (landing / NAME).exists()


def test_a_fault_of_our_own_ends_the_link_with_a_sentence_and_not_in_silence(
    sshd: PrivateSshd, landing: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(*_: object) -> None:
        raise ZeroDivisionError("by nought")

    monkeypatch.setattr(tuning.Tuning, "share_out", break_down)
    with linked(sshd, landing) as link, pytest.raises(LinkError, match=r"ZeroDivision.*report it"):
        link.send(packet(here))


def test_a_fault_of_our_own_that_passes_ends_nothing_for_good(
    sshd: PrivateSshd, landing: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = [ZeroDivisionError("by nought")]
    share_out = tuning.Tuning.share_out

    def break_down(self: tuning.Tuning, connections: list[Connection]) -> None:
        if once:
            raise once.pop()
        share_out(self, connections)

    monkeypatch.setattr(tuning.Tuning, "share_out", break_down)
    with linked(sshd, landing) as link:
        wait_until_open(link, 2)
        link.send(packet(here))
        assert "report it" in link.notices[0]
    assert (landing / NAME).exists()


def test_no_thread_to_be_started_is_waited_for_and_leaves_no_client_behind(
    sshd: PrivateSshd, landing: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def refuse(self: threading.Thread) -> None:
        if self.name in ("_listen", "_talk"):
            raise RuntimeError("can't start new thread")
        start(self)

    with linked(sshd, landing, timeout_s=20.0) as link:
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", refuse)
            link.open()
            wait_for(lambda: "no thread can be started" in link.state().trouble)
            wait_for(lambda: not clients())
        wait_for(lambda: has_sent(link, packet(here)))
    assert (landing / NAME).exists()


def test_a_fault_of_our_own_in_a_connection_ends_that_one(
    sshd: PrivateSshd, landing: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = [ZeroDivisionError("by nought")]
    take = Connection._take

    def break_down(self: Connection, message: object) -> None:
        if self.opened_at and once:
            raise once.pop()
        take(self, message)

    monkeypatch.setattr(Connection, "_take", break_down)
    with linked(sshd, landing, connections=1) as link:
        link.send(packet(here))
        wait_for(lambda: link.notices)
        assert "report it" in link.notices[0]


def test_a_night_of_packets_survives_everything_at_once(
    sshd: PrivateSshd, landing: Path, here: Path
) -> None:
    sent = packets(here, 40, 200_000)
    with linked(sshd, landing, rate=40.0, timeout_s=60.0) as link:
        wait_until_open(link, 2)
        sending = [in_background(link, each) for each in sent]
        for turn in range(6):
            known = acknowledged(link)
            wait_for(lambda known=known: acknowledged(link) > known or link._dealer.is_empty)
            victims = receivers(landing) if turn % 2 else clients()
            for victim in victims[:1]:
                with suppress(psutil.NoSuchProcess):
                    victim.kill()
        for each in sending:
            each.result(60.0)
        assert acknowledged(link) <= sum(each.stat().st_size for each in sent)
        send_all(link, sent[:2])
    assert are_there(landing, sent)

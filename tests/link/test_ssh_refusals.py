"""What the ssh link says when it cannot work: one sentence each, and never a hang."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from private_sshd import PrivateSshd, make_key
from receiving import NAME
from ssh_links import (
    FAR,
    are_there,
    clients,
    far_script,
    linked,
    logins,
    packet,
    wait_for,
    wait_until_open,
)

from prepipe.errors import ConfigError, LinkError, PacketError, StorageError
from prepipe.link import connection, ssh
from prepipe.link.advice import Ending
from prepipe.link.sftp import SftpLink
from prepipe.link.ssh import SshLink
from prepipe.telescope.obstacle import is_obstacle


@pytest.fixture
def sent(tmp_path: Path) -> Path:
    return packet(tmp_path / "here")


def complaint(sshd: PrivateSshd, landing: Path, sent: Path, **changes: object) -> str:
    """The one sentence that a sender is told."""
    with linked(sshd, landing, **changes) as link, pytest.raises(LinkError) as told:
        link.send(sent)
    text = str(told.value)
    assert text.startswith(f"{os.environ.get('USER', 'root')}@127.0.0.1:") or "127.0.0.1" in text
    assert "\n" not in text
    assert "Traceback" not in text
    assert len(text) < 700
    return text


def options(sshd: PrivateSshd, landing: Path, **changes: Path) -> tuple[str, ...]:
    """ssh's options, some of them others."""
    return tuple(
        next(
            (f"-o{name}={value}" for name, value in changes.items() if f"-o{name}=" in option),
            option,
        )
        for option in sshd.settings(landing).options
    )


def test_an_unknown_host_key_is_refused_and_not_remembered(
    sshd: PrivateSshd, landing: Path, sent: Path, tmp_path: Path
) -> None:
    known = tmp_path / "known_hosts"
    chosen = options(sshd, landing, UserKnownHostsFile=known)
    text = complaint(sshd, landing, sent, options=chosen)
    assert "host key is not known to this user; log in once by hand" in text
    assert not known.exists()
    assert list(landing.iterdir()) == []


@pytest.mark.parametrize("kind", [SshLink, SftpLink])
@pytest.mark.parametrize("way", ["accept-new", "no"])
def test_an_unknown_host_key_is_refused_though_the_users_own_file_would_take_it(
    sshd: PrivateSshd, landing: Path, sent: Path, tmp_path: Path, kind: type[SshLink], way: str
) -> None:
    known, own = tmp_path / "known_hosts", tmp_path / "ssh_config"
    own.write_text(f"StrictHostKeyChecking {way}\n")
    chosen = options(sshd, landing, UserKnownHostsFile=known)
    settings = sshd.settings(landing, command=FAR, options=(f"-F{own}", *chosen[1:]))
    link = kind(settings)
    try:
        with pytest.raises(LinkError, match="host key is not known"):
            link.send(sent)
    finally:
        link.close()
    assert not known.exists()


def test_a_changed_host_key_is_refused_and_nothing_is_written_down(
    sshd: PrivateSshd, landing: Path, sent: Path, tmp_path: Path
) -> None:
    kind, key = make_key(tmp_path / "other").with_suffix(".pub").read_text().split()[:2]
    known = tmp_path / "known_hosts"
    known.write_text(f"[127.0.0.1]:{sshd.port} {kind} {key}\n")
    before = known.read_bytes()
    chosen = options(sshd, landing, UserKnownHostsFile=known)
    assert "not the one this user knows" in complaint(sshd, landing, sent, options=chosen)
    assert known.read_bytes() == before


def test_working_connections_write_nothing_to_known_hosts(
    sshd: PrivateSshd, landing: Path, sent: Path
) -> None:
    before = sshd.known_hosts.read_bytes()
    with linked(sshd, landing) as link:
        link.send(sent)
    assert sshd.known_hosts.read_bytes() == before


def test_a_key_that_is_not_taken_is_told_and_tried_once(
    sshd: PrivateSshd, landing: Path, sent: Path, tmp_path: Path
) -> None:
    log = sshd.directory / "sshd.log"
    before = log.read_text().count("[preauth]")
    chosen = options(sshd, landing, IdentityFile=make_key(tmp_path / "stranger"))
    text = complaint(sshd, landing, sent, options=chosen, connections=8)
    assert "takes none of this user's keys" in text
    assert "authorized_keys" in text
    assert log.read_text().count("[preauth]") <= before + 2


def test_a_host_where_nothing_answers_is_told(sshd: PrivateSshd, landing: Path, sent: Path) -> None:
    assert "no SSH server answers there" in complaint(sshd, landing, sent, port=1)


def test_a_host_that_is_not_known_is_told(sshd: PrivateSshd, landing: Path, sent: Path) -> None:
    text = None
    with linked(sshd, landing, host="no-such-host.invalid") as link:
        with pytest.raises(LinkError, match="its name cannot be resolved") as told:
            link.send(sent)
        text = str(told.value)
    assert "no-such-host.invalid" in text


@pytest.mark.parametrize(
    "command", ["prepipe-is-not-here/prepipe", "no-such-program", "/nowhere/python -m prepipe"]
)
def test_no_prepipe_at_the_far_end_is_told(
    sshd: PrivateSshd, landing: Path, sent: Path, command: str
) -> None:
    text = complaint(sshd, landing, sent, command=command)
    assert "there is no prepipe there; install it" in text
    assert "link.command" in text


def test_an_older_prepipe_is_told(
    sshd: PrivateSshd, landing: Path, sent: Path, tmp_path: Path
) -> None:
    code = (
        "import sys\nprint('Usage: prepipe [OPTIONS] COMMAND [ARGS]...\\n', file=sys.stderr)\n"
        "sys.exit(\"Error: No such command 'receive'.\")\n"
    )
    text = complaint(sshd, landing, sent, command=far_script(tmp_path, code))
    assert "an older one, or broken; install the same version" in text


def test_a_broken_python_at_the_far_end_is_told(
    sshd: PrivateSshd, landing: Path, sent: Path
) -> None:
    text = complaint(sshd, landing, sent, command=f"{sys.executable} -m no_such_module")
    assert "an older one, or broken; install the same version" in text


STAND_IN = """
import sys
from prepipe.link.protocol import GREETING, Refused, Welcome, frame
sys.stdout.buffer.write(GREETING + frame({said}))
sys.stdout.flush()
sys.stdin.buffer.read(50)
"""


@pytest.mark.parametrize(
    "said",
    [
        "Welcome(99, '9.9.9')",
        "Refused('version', 'the far end (9.9.9) speaks version 99: install the same prepipe')",
    ],
)
def test_another_version_of_the_protocol_is_told(
    sshd: PrivateSshd, landing: Path, sent: Path, tmp_path: Path, said: str
) -> None:
    code = STAND_IN.format(said=said)
    text = complaint(sshd, landing, sent, command=far_script(tmp_path, code))
    assert "version 99" in text
    assert "9.9.9" in text
    assert "install the same" in text


def test_what_the_far_end_says_is_cut_to_one_line_that_steers_no_terminal(
    sshd: PrivateSshd, landing: Path, sent: Path, tmp_path: Path
) -> None:
    code = STAND_IN.format(said=r"Refused('protocol', 'no\n\x1b[2J' + 'x' * 5000)")
    text = complaint(sshd, landing, sent, command=far_script(tmp_path, code))
    assert text.isprintable()
    assert "no [2J" in text


def test_a_program_that_is_no_prepipe_is_told_with_what_it_says(
    sshd: PrivateSshd, landing: Path, sent: Path
) -> None:
    text = complaint(sshd, landing, sent, command="echo This account is closed.; exit 1 #")
    assert "'This account is closed.' is what it says" in text


def test_a_program_that_says_nothing_is_told(sshd: PrivateSshd, landing: Path, sent: Path) -> None:
    text = complaint(sshd, landing, sent, command="true")
    assert "ended with exit code 0 without a word; see link.command" in text


def test_a_program_that_never_answers_is_told_in_time(
    sshd: PrivateSshd, landing: Path, sent: Path
) -> None:
    text = complaint(sshd, landing, sent, command="sleep 600 #", timeout_s=1.5)
    assert "no prepipe has answered there within 2 s" in text


def test_a_program_that_talks_without_end_is_told_and_takes_no_memory(
    sshd: PrivateSshd, landing: Path, sent: Path
) -> None:
    before = psutil.Process().memory_info().rss
    text = complaint(sshd, landing, sent, command="yes what #")
    assert "talks without end" in text
    assert psutil.Process().memory_info().rss - before < 30e6


def test_complaints_without_end_take_no_memory(
    sshd: PrivateSshd, landing: Path, sent: Path
) -> None:
    before = psutil.Process().memory_info().rss
    with linked(sshd, landing, command=f"(yes complaint | head -c 50000000 >&2); {FAR}") as link:
        link.send(sent)
        assert len(link._pool.connections[0]._process.complaint) < 10_000
        assert psutil.Process().memory_info().rss - before < 30e6


@pytest.mark.parametrize(
    "banner",
    ["echo Welcome to the cluster", r"printf 'x\0y'", "head -c 200000 /dev/urandom", "echo >&2 hi"],
)
def test_what_a_login_prints_first_does_no_harm(
    sshd: PrivateSshd, landing: Path, sent: Path, banner: str
) -> None:
    with linked(sshd, landing, command=f"{banner}; {FAR}") as link:
        link.send(sent)
    assert are_there(landing, [sent])


def test_a_landing_directory_that_is_missing_is_told_and_not_made(
    sshd: PrivateSshd, tmp_path: Path, sent: Path
) -> None:
    missing = tmp_path / "not" / "mounted"
    with linked(sshd, missing) as link, pytest.raises(LinkError) as told:
        link.send(sent)
    assert str(missing) in str(told.value)
    assert "whether its disk is mounted" in str(told.value)
    assert not missing.parent.exists()


def test_a_landing_directory_that_is_a_file_is_told(
    sshd: PrivateSshd, tmp_path: Path, sent: Path
) -> None:
    (tmp_path / "file").touch()
    with linked(sshd, tmp_path / "file") as link, pytest.raises(LinkError, match="a file stands"):
        link.send(sent)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=True)
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.usefixtures("root")
def test_a_full_disk_is_told_and_once_there_is_space_the_packet_arrives(
    sshd: PrivateSshd, small_disk: Path, sent: Path
) -> None:
    (small_disk / "filler").write_bytes(bytes(600_000))
    with linked(sshd, small_disk) as link:
        with pytest.raises(StorageError, match=r"No space left.*free some space"):
            link.send(sent)
        (small_disk / "filler").unlink()
        link.send(sent)
    assert are_there(small_disk, [sent])


@pytest.mark.usefixtures("root")
def test_a_read_only_disk_is_told(sshd: PrivateSshd, small_disk: Path, sent: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with linked(sshd, small_disk) as link, pytest.raises(LinkError, match="mounted read-only"):
        link.send(sent)


def test_a_name_that_only_the_far_end_refuses_is_the_packets_fault(
    sshd: PrivateSshd, landing: Path, sent: Path, tmp_path: Path
) -> None:
    code = (
        "from prepipe.link import far_end\nfrom prepipe.errors import PacketError\n"
        "def refuse(name):\n    raise PacketError('no such camera here')\n"
        "far_end.parse_name = refuse\nfrom prepipe.cli import main\nmain()\n"
    )
    with (
        linked(sshd, landing, command=far_script(tmp_path, code)) as link,
        pytest.raises(PacketError, match="no such camera here"),
    ):
        link.send(sent)


def test_what_bears_a_packets_name_there_is_in_the_way_of_that_packet_alone(
    sshd: PrivateSshd, landing: Path, sent: Path
) -> None:
    (landing / sent.name).mkdir()
    other = packet(sent.parent, "decam_00000001_01.packet")
    with linked(sshd, landing) as link:
        with pytest.raises(StorageError, match=sent.name) as told:
            link.send(sent)
        assert not is_obstacle(told.value)
        link.send(other)
    assert (landing / other.name).read_bytes() == other.read_bytes()


def test_an_inventory_without_end_is_refused(
    sshd: PrivateSshd, landing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_MOST_FILES", 2)
    for number in range(3):
        packet(landing, f"decam_0000000{number}_01.packet", 10)
    with linked(sshd, landing) as link, pytest.raises(LinkError, match="more than 2 packets"):
        link.inventory()


def test_what_comes_late_of_one_inventory_is_not_taken_for_the_next(
    sshd: PrivateSshd, landing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first far end lists half of it, and the other half only when it is asked again."""
    listed = [packet(landing, f"decam_00000001_{number:02d}.packet", 100) for number in range(1, 5)]
    asked = tmp_path / "asked"
    code = (
        "import os, time\nfrom prepipe.link import far_end\n"
        "far_end.PAGE = 1\npackets, take = far_end.FarEnd._packets, far_end.FarEnd._take\n"
        f"first, asked = not os.path.exists({str(asked)!r}), []\n"
        "def note(self, message):\n"
        "    if isinstance(message, far_end.ListFiles):\n"
        "        asked.append(message)\n"
        f"        open({str(asked)!r}, 'a').close()\n"
        "    take(self, message)\n"
        "def slowly(*words):\n"
        "    for number, each in enumerate(packets(*words)):\n"
        "        while number == 2 and first and len(asked) < 2:\n"
        "            time.sleep(0.01)\n"
        "        yield each\n"
        "far_end.FarEnd._packets, far_end.FarEnd._take = slowly, note\n"
        "from prepipe.cli import main\nmain()\n"
    )
    with linked(sshd, landing, command=far_script(tmp_path, code), connections=1) as link:
        wait_until_open(link, 1)
        monkeypatch.setattr(ssh, "_INVENTORY_S", 1.0)
        with pytest.raises(LinkError, match="no inventory within"):
            link.inventory()
        assert asked.exists()
        monkeypatch.setattr(ssh, "_INVENTORY_S", 60.0)
        assert set(link.inventory()) == {each.name for each in listed}


def test_an_inventory_is_asked_for_again_if_the_connection_breaks(
    sshd: PrivateSshd, landing: Path, tmp_path: Path
) -> None:
    packet(landing, NAME, 10)
    once = tmp_path / "once"
    code = (
        "import os\nfrom prepipe.link import far_end\nreal = far_end.FarEnd._list\n"
        f"def end(*words):\n    if os.path.exists({str(once)!r}):\n        return real(*words)\n"
        f"    open({str(once)!r}, 'w').close()\n    os._exit(3)\n"
        "far_end.FarEnd._list = end\nfrom prepipe.cli import main\nmain()\n"
    )
    with linked(sshd, landing, command=far_script(tmp_path, code)) as link:
        assert list(link.inventory()) == [NAME]
    assert once.exists()


def test_without_an_ssh_program_nothing_is_begun(
    sshd: PrivateSshd, landing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match="install the OpenSSH client"):
        SshLink(sshd.settings(landing))


@pytest.fixture
def users_own(sshd: PrivateSshd, tmp_path: Path) -> Iterator[Path]:
    """The user's ssh configuration: a shared connection is open, no key gets in any more."""
    stranger = make_key(tmp_path / "stranger")
    found = tmp_path / "ssh_config"
    found.write_text(
        f"Host *\nIdentityFile {stranger}\nIdentitiesOnly yes\nIdentityAgent none\n"
        f"UserKnownHostsFile {sshd.known_hosts}\nControlPath {tmp_path}/shared\n"
    )
    master = subprocess.Popen(
        [
            "ssh",
            "-F/dev/null",
            "-MN",
            f"-oControlPath={tmp_path}/shared",
            f"-oIdentityFile={sshd.key}",
            f"-oUserKnownHostsFile={sshd.known_hosts}",
            f"-p{sshd.port}",
            "127.0.0.1",
        ]
    )
    wait_for((tmp_path / "shared").exists)
    yield found
    master.terminate()
    master.wait()


def test_where_only_the_users_shared_connection_gets_in_it_is_used_and_told(
    sshd: PrivateSshd, landing: Path, sent: Path, users_own: Path
) -> None:
    before = logins(sshd)
    with linked(sshd, landing, options=(f"-F{users_own}",), connections=16) as link:
        link.send(sent)
        assert len(link.notices) == 1
        assert "only your own shared connection" in link.notices[0]
        wait_until_open(link, 4)
    assert logins(sshd) == before
    assert are_there(landing, [sent])


def test_when_the_shared_connection_is_gone_too_the_key_is_what_is_told(
    sshd: PrivateSshd, landing: Path, sent: Path, users_own: Path
) -> None:
    with linked(sshd, landing, options=(f"-F{users_own}",), timeout_s=20.0) as link:
        link.send(sent)
        subprocess.run(
            ["ssh", f"-F{users_own}", f"-p{sshd.port}", "-Oexit", "127.0.0.1"],
            check=True,
            capture_output=True,
        )
        wait_for(lambda: link.state().trouble)
        with pytest.raises(LinkError, match="takes none of this user's keys"):
            link.send(packet(sent.parent, seed=1))


def test_the_users_shared_connection_is_left_alone_where_a_key_gets_in(
    sshd: PrivateSshd, landing: Path, sent: Path, tmp_path: Path
) -> None:
    chosen = tmp_path / "ssh_config"
    chosen.write_text(
        f"Host *\nIdentityFile {sshd.key}\nIdentitiesOnly yes\nIdentityAgent none\n"
        f"UserKnownHostsFile {sshd.known_hosts}\nControlMaster auto\nControlPersist yes\n"
        f"ControlPath {tmp_path}/shared\nRemoteCommand echo never\n"
    )
    before = logins(sshd)
    with linked(sshd, landing, options=(f"-F{chosen}",)) as link:
        wait_until_open(link, 2)
        link.send(sent)
    assert logins(sshd) == before + 2
    assert not (tmp_path / "shared").exists()
    assert are_there(landing, [sent])


def test_what_a_server_takes_after_a_refusal_is_found_out_without_a_new_start(
    sshd: PrivateSshd, landing: Path, sent: Path
) -> None:
    keys = sshd.directory / "authorized_keys"
    known = keys.read_bytes()
    keys.write_bytes(b"")
    try:
        with linked(sshd, landing) as link:
            with pytest.raises(LinkError, match="takes none"):
                link.send(sent)
            assert "takes none" in link.state().trouble
            keys.write_bytes(known)
            began = time.monotonic()
            while time.monotonic() - began < 30.0:
                try:
                    link.send(sent)
                    break
                except LinkError:
                    time.sleep(0.1)
            assert link.state().trouble == ""
    finally:
        keys.write_bytes(known)
    assert are_there(landing, [sent])
    assert clients() == []


@pytest.mark.parametrize(
    ("ending", "passing"),
    [
        (Ending(complaint="ssh: connect to host x port 22: Connection timed out"), True),
        (Ending(complaint="kex_exchange_identification: Connection closed by remote host"), True),
        (Ending(complaint="Permission denied (publickey)."), False),
        (Ending(complaint="timed out waiting for the file system", exit_code=1), False),
        (Ending(exit_code=1), False),
        (Ending(exit_code=-9), True),
        (Ending(fault="no answer", exit_code=-9), True),
        (Ending(fault="another version", reason="version", exit_code=-9), False),
    ],
)
def test_what_comes_right_by_itself_is_told_from_what_does_not(
    ending: Ending, passing: bool
) -> None:
    assert ending.is_passing is passing


@pytest.mark.parametrize(
    ("ending", "gist"),
    [
        (Ending(complaint="zsh:1: command not found: prepipe", exit_code=127), "no prepipe there"),
        (Ending(complaint="sh: 1: prepipe: not found", exit_code=127), "no prepipe there"),
        (Ending(complaint="bash: /x/prepipe: Permission denied", exit_code=126), "may not be run"),
        (Ending(complaint="Traceback (most recent call last):\n ...\nOSError: no"), "OSError: no"),
        (Ending(noise="Account expired.\n", exit_code=1), "Account expired."),
        (Ending(complaint="x" * 100_000), "xxx..."),
        (Ending(), "the connection broke"),
    ],
)
def test_what_a_client_complains_of_becomes_one_sentence(ending: Ending, gist: str) -> None:
    text = ending.told("ozstar")
    assert gist in text
    assert "\n" not in text
    assert len(text) < 1000

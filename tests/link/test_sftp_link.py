"""The sftp link, against a real SSH server."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from private_sshd import PrivateSshd, make_key, need_sshd

from prepipe.errors import LinkError, PacketError, StorageError
from prepipe.link import Held, open_link
from prepipe.link.sftp import SftpLink

NAME = "decam_00941420_25.packet"


@pytest.fixture
def landing(tmp_path: Path) -> Path:
    path = tmp_path / 'far side "quoted"' / "landing"
    path.mkdir(parents=True)
    return path


@pytest.fixture
def link(sshd: PrivateSshd, landing: Path) -> Iterator[SftpLink]:
    opened = SftpLink(sshd.settings(landing))
    yield opened
    opened.close()


def packet(directory: Path, name: str = NAME, size: int = 100_000) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / name
    path.write_bytes(bytes(range(256)) * (size // 256))
    return path


def test_a_packet_arrives_whole_and_leaves_no_partial_file(
    link: SftpLink, landing: Path, tmp_path: Path
) -> None:
    sent = packet(tmp_path / "here")
    link.send(sent)
    assert (landing / NAME).read_bytes() == sent.read_bytes()
    assert [path.name for path in landing.iterdir()] == [NAME]


def test_sending_twice_replaces_what_is_there(
    link: SftpLink, landing: Path, tmp_path: Path
) -> None:
    link.send(packet(tmp_path / "here"))
    again = packet(tmp_path / "here", size=5120)
    link.send(again)
    assert (landing / NAME).read_bytes() == again.read_bytes()


def test_an_original_lands_in_the_archive_beside_the_packet_of_its_name(
    link: SftpLink, landing: Path, tmp_path: Path
) -> None:
    original = packet(tmp_path / "here")
    link.send(original, place="archive")
    link.send(packet(tmp_path / "lossy", size=5120))
    assert (landing / "archive" / NAME).read_bytes() == original.read_bytes()
    assert (landing / NAME).stat().st_size == 5120


def test_a_place_that_is_none_is_refused(link: SftpLink, landing: Path, tmp_path: Path) -> None:
    with pytest.raises(PacketError, match="no place in a landing directory"):
        link.send(packet(tmp_path / "here"), place="../elsewhere")
    assert list(landing.iterdir()) == []


def test_many_packets_at_a_time_share_one_connection(
    sshd: PrivateSshd, link: SftpLink, landing: Path, tmp_path: Path
) -> None:
    packets = [packet(tmp_path / "here", f"decam_00000001_{n:02d}.packet") for n in range(1, 13)]
    logins = (sshd.directory / "sshd.log").read_text().count("Accepted publickey")
    link.send(packets[0])
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(link.send, packets[1:]))
    assert sorted(path.name for path in landing.iterdir()) == [path.name for path in packets]
    assert (sshd.directory / "sshd.log").read_text().count("Accepted publickey") == logins + 1


def test_the_inventory_counts_registered_packets_but_not_rejected_archived_or_partial_ones(
    link: SftpLink, landing: Path
) -> None:
    kept = landing / "done" / "2020-03-05"
    packet(landing, NAME, 512)
    packet(kept, "decam_00941419_01.packet", 1024)
    packet(landing / "rejected", "decam_00941418_01.packet")
    packet(landing / "archive", "decam_00941419_01.packet")
    packet(landing, ".decam_00941417_01.packet.0123abcd.part")
    packet(landing / "a directory; rm", "decam_00941416_01.packet")
    assert link.inventory() == {NAME: Held(512, ""), "decam_00941419_01.packet": Held(1024, "")}


def test_the_inventory_of_a_landing_directory_not_yet_made_is_empty(link: SftpLink) -> None:
    assert link.inventory() == {}


def test_a_relative_landing_directory_lies_in_the_home_directory(sshd: PrivateSshd) -> None:
    link = SftpLink(sshd.settings(Path("~/prepipe-test-that-is-not-there")))
    try:
        assert link.inventory() == {}
    finally:
        link.close()


@pytest.mark.parametrize("name", ["../evil.packet", "-rm.packet", "a b.packet", "x.fits"])
def test_a_name_that_is_no_packets_is_refused(link: SftpLink, tmp_path: Path, name: str) -> None:
    with pytest.raises(PacketError):
        link.send(tmp_path / name)


def test_a_packet_that_vanished_here_is_no_fault_of_the_link(
    link: SftpLink, tmp_path: Path
) -> None:
    with pytest.raises(StorageError, match="vanished"):
        link.send(tmp_path / NAME)


def test_an_unknown_host_key_is_refused_and_not_remembered(
    sshd: PrivateSshd, landing: Path, tmp_path: Path
) -> None:
    known = tmp_path / "known_hosts"
    options = [
        f"-oUserKnownHostsFile={known}" if "UserKnown" in option else option
        for option in sshd.settings(landing).options
    ]
    link = SftpLink(sshd.settings(landing, options=tuple(options)))
    with pytest.raises(LinkError, match=r"host key is not known.*log in once by hand"):
        link.send(packet(tmp_path / "here"))
    link.close()
    assert not known.exists()
    assert list(landing.iterdir()) == []


def test_a_changed_host_key_is_refused(sshd: PrivateSshd, landing: Path, tmp_path: Path) -> None:
    other = make_key(tmp_path / "other_host_key")
    known = tmp_path / "known_hosts"
    kind, key = other.with_suffix(".pub").read_text().split()[:2]
    known.write_text(f"[127.0.0.1]:{sshd.port} {kind} {key}\n")
    options = (*sshd.settings(landing).options[:4], f"-oUserKnownHostsFile={known}")
    link = SftpLink(sshd.settings(landing, options=options))
    with pytest.raises(LinkError, match="not the one this user knows"):
        link.inventory()
    link.close()


def test_a_wrong_user_key_is_told_with_what_to_do(
    sshd: PrivateSshd, landing: Path, tmp_path: Path
) -> None:
    stranger = make_key(tmp_path / "stranger")
    options = (f"-oIdentityFile={stranger}", *sshd.settings(landing).options[2:], "-F/dev/null")
    link = SftpLink(sshd.settings(landing, options=options))
    with pytest.raises(LinkError, match="authorized_keys"):
        link.send(packet(tmp_path / "here"))
    link.close()


def test_a_server_that_does_not_answer_is_told(
    sshd: PrivateSshd, landing: Path, tmp_path: Path
) -> None:
    link = SftpLink(sshd.settings(landing, port=1))
    with pytest.raises(LinkError, match="no SSH server answers there"):
        link.send(packet(tmp_path / "here"))
    link.close()


def test_a_server_killed_under_way_leaves_no_packet_and_takes_it_when_back(
    tmp_path: Path, landing: Path
) -> None:
    need_sshd()
    home = tmp_path / "sshd"
    home.mkdir()
    server = PrivateSshd(home)
    server.start()
    # slow enough to be killed while the packet crosses
    slow = (*server.settings(landing).options, "-l", "20000")
    link = SftpLink(server.settings(landing, options=slow))
    big = packet(tmp_path / "here", size=3_000_000)
    killer = threading.Timer(0.8, server.kill)
    killer.start()
    with pytest.raises(LinkError, match="connection broke"):
        link.send(big)
    killer.join()
    assert not (landing / NAME).exists()
    with pytest.raises(LinkError, match="no SSH server answers"):
        link.send(big)
    server.start()
    quick = SftpLink(server.settings(landing))
    quick.send(big)
    assert (landing / NAME).read_bytes() == big.read_bytes()
    quick.close()
    link.close()
    server.kill()


def test_a_far_side_that_falls_silent_is_given_up(sshd: PrivateSshd, tmp_path: Path) -> None:
    # a proxy that takes the connection and never says a word
    mute = f"-oProxyCommand={sys.executable} -c 'import time; time.sleep(30)'"
    settings = sshd.settings(tmp_path / "landing", timeout_s=1.0)
    settings = settings.model_copy(update={"options": (*settings.options, mute)})
    link = SftpLink(settings)
    with pytest.raises(LinkError, match=r"does not answer|no answer within"):
        link.inventory()
    link.close()


def test_a_full_disk_over_there_is_a_storage_error_and_nothing_stays_in_the_way(
    sshd: PrivateSshd, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("may not mount a small disk here")
    (small / "landing").mkdir()
    link = SftpLink(sshd.settings(small / "landing"))
    try:
        with pytest.raises(StorageError, match="free some space there"):
            link.send(packet(tmp_path / "here", size=500_000))
        assert list((small / "landing").iterdir()) == []
        link.send(packet(tmp_path / "here", size=5120))
        assert (small / "landing" / NAME).stat().st_size == 5120
    finally:
        link.close()
        subprocess.run(["umount", small], check=True)


def test_a_landing_directory_that_is_missing_is_told_and_not_made(
    sshd: PrivateSshd, tmp_path: Path
) -> None:
    link = SftpLink(sshd.settings(tmp_path / "far" / "lading"))
    with pytest.raises(LinkError, match=r"is not there, or cannot be entered.*see link\.landing"):
        link.send(packet(tmp_path / "here"))
    link.close()
    assert not (tmp_path / "far").exists()


def test_closing_hangs_up_and_leaves_no_socket(
    sshd: PrivateSshd, landing: Path, tmp_path: Path
) -> None:
    link = open_link(sshd.settings(landing, kind="sftp"))
    assert isinstance(link, SftpLink)
    link.send(packet(tmp_path / "here"))
    control = link._control
    assert control.stat().st_mode & 0o777 == 0o700
    link.close()
    assert not control.exists()
    link.close()


def test_closing_ends_a_packet_under_way_with_an_error_of_the_link(
    sshd: PrivateSshd, landing: Path, tmp_path: Path
) -> None:
    slow = (*sshd.settings(landing).options, "-l", "1000")
    link = SftpLink(sshd.settings(landing, options=slow, timeout_s=60.0))
    link.inventory()
    closer = threading.Timer(0.5, link.close)
    closer.start()
    with pytest.raises(LinkError, match="link was closed"):
        link.send(packet(tmp_path / "here", size=3_000_000))
    closer.join()
    assert not (landing / NAME).exists()
    with pytest.raises(LinkError, match="link was closed"):
        link.inventory()


def test_without_ssh_installed_it_says_so(
    monkeypatch: pytest.MonkeyPatch, sshd: PrivateSshd, landing: Path
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(Exception, match="install the OpenSSH client"):
        SftpLink(sshd.settings(landing))

"""The link to another directory of this machine."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from prepipe import config
from prepipe.errors import LinkError, PacketError, StorageError
from prepipe.files import content_checksum
from prepipe.link import open_link
from prepipe.link.local import LocalLink

NAME = "decam_00941420_25.packet"


@pytest.fixture
def packet(tmp_path: Path) -> Path:
    path = tmp_path / "here" / NAME
    path.parent.mkdir()
    path.write_bytes(b"packet" * 1000)
    return path


def test_a_packet_arrives_whole_and_leaves_no_partial_file(tmp_path: Path, packet: Path) -> None:
    landing = tmp_path / "landing"
    LocalLink(landing).send(packet)
    assert (landing / NAME).read_bytes() == packet.read_bytes()
    assert [path.name for path in landing.iterdir()] == [NAME]


def test_it_is_copied_where_it_cannot_be_linked(
    tmp_path: Path, packet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_device(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", other_device)
    LocalLink(tmp_path / "landing").send(packet)
    arrived = tmp_path / "landing" / NAME
    assert arrived.read_bytes() == packet.read_bytes()
    assert arrived.stat().st_ino != packet.stat().st_ino


def test_sending_twice_changes_nothing(tmp_path: Path, packet: Path) -> None:
    link = LocalLink(tmp_path / "landing")
    link.send(packet)
    link.send(packet)
    assert [path.name for path in (tmp_path / "landing").iterdir()] == [NAME]


def test_what_is_sent_survives_the_removal_of_the_original(tmp_path: Path, packet: Path) -> None:
    content = packet.read_bytes()
    LocalLink(tmp_path / "landing").send(packet)
    packet.unlink()
    assert (tmp_path / "landing" / NAME).read_bytes() == content


def test_the_inventory_counts_registered_packets_but_not_rejected_archived_or_partial_ones(
    tmp_path: Path,
) -> None:
    for name, size in (
        (NAME, 5),
        ("done/decam_00000001_01.packet", 6),
        ("done/2020-03-05/decam_00000002_01.packet", 7),
        ("rejected/decam_00000003_01.packet", 8),
        ("archive/decam_00000005_01.packet", 8),
        (".decam_00000004_01.packet.99.part", 9),
        ("notes.txt", 10),
    ):
        path = tmp_path / "landing" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))
    held = LocalLink(tmp_path / "landing").inventory()
    assert {name: packet.size for name, packet in held.items()} == {
        NAME: 5,
        "decam_00000001_01.packet": 6,
        "decam_00000002_01.packet": 7,
    }


def test_an_original_lands_in_the_archive_beside_the_packet_of_its_name(
    tmp_path: Path, packet: Path
) -> None:
    link = LocalLink(tmp_path / "landing")
    link.send(packet)
    original = tmp_path / "original" / NAME
    original.parent.mkdir()
    original.write_bytes(b"original")
    link.send(original, place="archive")
    assert (tmp_path / "landing" / "archive" / NAME).read_bytes() == b"original"
    assert (tmp_path / "landing" / NAME).read_bytes() == packet.read_bytes()


def test_an_original_that_is_there_already_is_not_sent_again(tmp_path: Path, packet: Path) -> None:
    link = LocalLink(tmp_path / "landing")
    link.send(packet, place="archive")
    before = (tmp_path / "landing" / "archive" / NAME).stat()
    link.send(packet, place="archive")
    assert (tmp_path / "landing" / "archive" / NAME).stat() == before


def test_an_original_replaces_another_of_the_same_size(tmp_path: Path, packet: Path) -> None:
    there = tmp_path / "landing" / "archive" / NAME
    there.parent.mkdir(parents=True)
    there.write_bytes(bytes(packet.stat().st_size))
    LocalLink(tmp_path / "landing").send(packet, place="archive")
    assert there.read_bytes() == packet.read_bytes()


@pytest.mark.parametrize("place", ["done", "..", "/tmp", "archive/x"])
def test_a_place_that_is_none_is_refused(tmp_path: Path, packet: Path, place: str) -> None:
    with pytest.raises(PacketError, match="no place in a landing directory"):
        LocalLink(tmp_path / "landing").send(packet, place=place)
    assert not (tmp_path / "landing").exists()


def test_the_inventory_tells_the_checksum_of_each_packet(tmp_path: Path, packet: Path) -> None:
    link = LocalLink(tmp_path / "landing")
    link.send(packet)
    held = link.inventory()[NAME]
    assert held.checksum == content_checksum(packet)


def test_a_packet_that_moved_after_the_inventory_has_no_checksum(
    tmp_path: Path, packet: Path
) -> None:
    link = LocalLink(tmp_path / "landing")
    link.send(packet)
    held = link.inventory()[NAME]
    (tmp_path / "landing" / NAME).unlink()
    assert held.checksum == ""


def test_a_packet_that_landed_anew_hides_the_registered_one_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / NAME).write_bytes(b"old")
    (tmp_path / NAME).write_bytes(b"fresh")
    held = LocalLink(tmp_path).inventory()[NAME]
    assert (held.size, held.checksum) == (5, content_checksum(tmp_path / NAME))


def test_a_landing_directory_not_yet_made_is_empty(tmp_path: Path) -> None:
    assert LocalLink(tmp_path / "nowhere").inventory() == {}


def test_a_landing_directory_is_not_made_where_its_disk_is_not_mounted(
    tmp_path: Path, packet: Path
) -> None:
    link = LocalLink(tmp_path / "disk" / "landing")
    for ask in (lambda: link.send(packet), link.inventory):
        with pytest.raises(LinkError, match=r"/disk does not exist: look whether its disk is mou"):
            ask()
    assert not (tmp_path / "disk").exists()


def test_a_landing_directory_that_is_a_file_is_a_fault_of_the_link(
    tmp_path: Path, packet: Path
) -> None:
    (tmp_path / "landing").write_text("a file")
    with pytest.raises(LinkError, match="landing directory"):
        LocalLink(tmp_path / "landing").send(packet)
    with pytest.raises(LinkError, match="landing directory"):
        LocalLink(tmp_path / "landing").inventory()


def test_a_full_disk_is_a_storage_error_and_leaves_nothing_behind(
    tmp_path: Path, packet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_source: Path, target: Path) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EXDEV, "x")))
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(StorageError, match="free some space"):
        LocalLink(tmp_path / "landing").send(packet)
    assert list((tmp_path / "landing").iterdir()) == []


def test_a_packet_that_vanished_is_no_fault_of_the_link(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="vanished"):
        LocalLink(tmp_path / "landing").send(tmp_path / NAME)


def test_a_name_that_is_no_packets_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PacketError):
        LocalLink(tmp_path / "landing").send(tmp_path / "evil.packet")


def test_the_settings_choose_the_link(tmp_path: Path) -> None:
    assert isinstance(open_link(config.Link(landing=tmp_path)), LocalLink)

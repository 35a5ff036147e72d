"""The landing directory: what becomes of each packet, and of what is none."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from dataclasses import replace
from datetime import date, datetime, timedelta
from pathlib import Path

import pytest
from cluster_packets import exposure, make_packet
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prepipe.cluster import What
from prepipe.cluster.receive import Receiver
from prepipe.codec.packet import verify
from prepipe.errors import StorageError
from prepipe.link.local import LocalLink
from prepipe.model import Colour, Grade, Kind, Night, Reduction, Stage
from prepipe.store import CcdKey, Journal

KEY = CcdKey("decam", 7, 1)
NAME = "decam_00000007_01.packet"


@pytest.fixture
def landing(tmp_path):
    return tmp_path / "landing"


@pytest.fixture
def journal(tmp_path):
    journal = Journal(tmp_path / "journal.sqlite")
    yield journal
    journal.close()


@pytest.fixture
def receiver(landing, journal):
    return Receiver(landing, journal, settle_s=0.0)


def look(receiver):
    return list(receiver.look())


def kinds(events):
    return [event.what for event in events]


def calibrate(journal, key=KEY):
    journal.calibrated(key, Reduction(key.exposure, key.ccd), Grade(Colour.GREEN), 1.0)


def only_quarantined(journal):
    (row,) = journal.quarantined_files()
    return row


def test_a_good_packet_is_registered_and_moved_to_its_night(landing, journal, receiver):
    size = make_packet(landing, 7, 1).stat().st_size
    assert kinds(look(receiver)) == [What.LANDED]
    done = landing / "done" / "ut200306" / NAME
    row = journal.row(KEY)
    assert done.is_file()
    assert not (landing / NAME).exists()
    assert row.stage is Stage.LANDED
    assert (row.packet, row.packet_bytes, row.codec) == (str(done), size, "none")
    assert len(row.checksum) == 32
    assert row.exposure == exposure(7)
    assert row.landed_at is not None


def test_a_landing_directory_is_not_made_where_its_disk_is_not_mounted(tmp_path, journal):
    receiver = Receiver(tmp_path / "disk" / "landing", journal)
    with pytest.raises(StorageError, match=r"/disk does not exist: look whether its disk is mount"):
        look(receiver)
    assert not (tmp_path / "disk").exists()
    (tmp_path / "disk").mkdir()
    assert look(receiver) == []
    assert (tmp_path / "disk" / "landing").is_dir()


def test_newest_packets_are_taken_first(landing, receiver):
    for number in (5, 9, 7):
        make_packet(landing, number, 1)
    assert [event.key.exposure for event in look(receiver)] == [9, 7, 5]


def test_hidden_and_partial_files_and_directories_are_left_alone(landing, journal, receiver):
    landing.mkdir()
    for name in (f".{NAME}.part", f"{NAME}.part", ".hidden"):
        (landing / name).write_bytes(b"half")
    (landing / "somewhere").mkdir()
    before = set(landing.iterdir())
    assert look(receiver) == []
    assert before <= set(landing.iterdir())
    assert journal.quarantined_files() == []


def test_what_an_ssh_link_has_under_way_and_the_archive_are_left_alone(landing, journal, receiver):
    make_packet(landing / "archive", 7, 1)
    for directory in (landing, landing / "archive"):
        for name in (f".{NAME}.0123456789abcdef.part", f".{NAME}.0123456789abcdef.marks.part"):
            (directory / name).write_bytes(b"half a packet")
    before = [path for path in landing.rglob("*") if path.is_file()]
    assert len(before) == 5
    assert look(receiver) == []
    assert all(path.is_file() for path in before)
    assert journal.rows() == []


def test_the_telescope_counts_a_registered_packet_as_arrived(landing, receiver):
    path = make_packet(landing, 7, 1)
    before = {name: held.checksum for name, held in LocalLink(landing).inventory().items()}
    look(receiver)
    assert {name: held.checksum for name, held in LocalLink(landing).inventory().items()} == before
    assert not path.exists()


def flip_bit(content):
    content[len(content) - 5] ^= 0x10
    return content


def cut_short(content):
    return content[:-100]


def leave_nothing(content):
    return content[:0]


def raise_version(content):
    content[8] += 1
    return content


def append(content):
    return content + b"more"


def be_text(content):
    return bytearray(b"404 not found\n") + content[14:]


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (flip_bit, "damaged"),
        (cut_short, "truncated"),
        (leave_nothing, "no packet"),
        (raise_version, "version"),
        (append, "follow its end"),
        (be_text, "no packet"),
    ],
)
def test_a_damaged_packet_is_rejected_with_its_reason(landing, journal, receiver, damage, word):
    path = make_packet(landing, 7, 1)
    path.write_bytes(damage(bytearray(path.read_bytes())))
    good = make_packet(landing, 6, 1)
    events = look(receiver)
    rejected = landing / "rejected" / NAME
    assert kinds(events) == [What.REJECTED, What.LANDED]
    assert rejected.is_file()
    assert word in only_quarantined(journal).reason
    assert only_quarantined(journal).path == str(rejected)
    assert word in rejected.with_name(NAME + ".reason.txt").read_text()
    assert journal.row(KEY) is None
    assert set(LocalLink(landing).inventory()) == {good.name}


@pytest.mark.parametrize(
    "name",
    [
        "..%2f..%2fetc%2fpasswd",
        "..\\..\\x.packet",
        "decam_7_1.packet",
        "decam_00000007_01.packet\n",
        "decam_00000007_01.packet ",
        "DECAM_00000007_01.packet",
        "-rf",
        "decam_00000007_01.packet\x1b[2J",
        "$(reboot).packet",
        "x" * 255,
    ],
)
def test_a_name_that_is_no_packets_name_is_rejected(landing, journal, receiver, name):
    make_packet(landing, 7, 1).rename(landing / name)
    assert kinds(look(receiver)) == [What.REJECTED]
    files = [path for path in (landing / "rejected").iterdir() if "reason" not in path.name]
    assert len(files) == 1
    assert files[0].name.isprintable()
    assert files[0].name[0] not in ".-"
    assert "name" in only_quarantined(journal).reason
    assert journal.rows() == []
    assert look(receiver) == []


def test_a_name_that_is_not_utf_8_is_rejected(landing, journal, receiver):
    make_packet(landing, 7, 1).rename(landing / os.fsdecode(b"\xff\xfe.packet"))
    assert kinds(look(receiver)) == [What.REJECTED]
    assert len(journal.quarantined_files()) == 1


def test_a_packet_with_another_ones_name_is_rejected(landing, journal, receiver):
    make_packet(landing, 7, 1).rename(landing / "decam_00000007_02.packet")
    assert kinds(look(receiver)) == [What.REJECTED]
    assert NAME in only_quarantined(journal).reason
    assert journal.rows() == []


def test_a_link_to_somewhere_else_is_rejected_unread(landing, tmp_path, journal, receiver):
    elsewhere = make_packet(tmp_path / "elsewhere", 7, 1)
    landing.mkdir()
    (landing / NAME).symlink_to(elsewhere)
    assert kinds(look(receiver)) == [What.REJECTED]
    assert elsewhere.is_file()
    assert journal.rows() == []


def test_a_pipe_does_not_hang_the_receiver(landing, receiver):
    landing.mkdir()
    os.mkfifo(landing / NAME)
    assert kinds(look(receiver)) == [What.REJECTED]


def test_a_packet_that_is_still_being_completed_is_waited_for(landing, journal):
    receiver = Receiver(landing, journal, settle_s=0.2)
    path = make_packet(landing, 7, 1)
    content = path.read_bytes()
    path.write_bytes(content[:500])
    assert look(receiver) == []
    assert not receiver.settled
    path.write_bytes(content)
    assert kinds(look(receiver)) == [What.LANDED]
    assert receiver.settled


def test_a_damaged_packet_that_does_not_change_is_rejected_at_a_later_look(landing, journal):
    receiver = Receiver(landing, journal, settle_s=0.05)
    path = make_packet(landing, 7, 1)
    path.write_bytes(path.read_bytes()[:500])
    assert look(receiver) == []
    events = []
    while not events:
        events = look(receiver)
    assert kinds(events) == [What.REJECTED]
    assert receiver.settled


def test_the_same_packet_again_changes_nothing(landing, journal, receiver):
    make_packet(landing, 7, 1)
    look(receiver)
    calibrate(journal)
    make_packet(landing, 7, 1)
    assert kinds(look(receiver)) == [What.REPEATED]
    assert not (landing / NAME).exists()
    assert journal.row(KEY).stage is Stage.CALIBRATED
    assert journal.row(KEY).grade == "green"


def test_another_name_of_the_very_same_file_is_cleared_away(landing, journal, receiver):
    sent = make_packet(landing.parent / "telescope", 7, 1)
    for _ in range(2):
        LocalLink(landing).send(sent)
        look(receiver)
    assert not (landing / NAME).exists()
    assert Path(journal.row(KEY).packet).samefile(sent)


def test_a_packet_with_other_content_replaces_a_calibrated_one(landing, journal, receiver):
    make_packet(landing, 7, 1)
    look(receiver)
    calibrate(journal)
    old = journal.row(KEY)
    content = make_packet(landing, 7, 1, seed=1).read_bytes()
    assert kinds(look(receiver)) == [What.REPLACED]
    row = journal.row(KEY)
    assert row.stage is Stage.LANDED
    assert row.checksum != old.checksum
    assert (row.grade, row.reasons, row.reduction, row.calibrated_at) == (None, (), {}, None)
    assert Path(row.packet).read_bytes() == content


def test_a_repeated_packet_stays_in_quarantine_but_one_that_was_missing_is_released(
    landing, journal, receiver
):
    make_packet(landing, 7, 1)
    look(receiver)
    journal.fail(KEY, Stage.CALIBRATED, "bad")
    make_packet(landing, 7, 1)
    look(receiver)
    assert journal.row(KEY).stage is Stage.QUARANTINED
    Path(journal.row(KEY).packet).unlink()
    make_packet(landing, 7, 1)
    look(receiver)
    assert journal.row(KEY).stage is Stage.LANDED


def test_another_exposure_of_the_same_number_is_rejected(landing, journal, receiver):
    make_packet(landing, 7, 1)
    look(receiver)
    told = replace(exposure(7), start=exposure(7).start + timedelta(hours=1))
    make_packet(landing, 7, 2, told=told)
    assert kinds(look(receiver)) == [What.REJECTED]
    assert "exposure 7 began at" in only_quarantined(journal).reason
    assert [row.key for row in journal.rows()] == [KEY]


def test_a_good_packet_clears_its_damaged_predecessor_away(landing, journal, receiver):
    path = make_packet(landing, 7, 1)
    path.write_bytes(path.read_bytes()[:500])
    look(receiver)
    make_packet(landing, 7, 1)
    assert kinds(look(receiver)) == [What.LANDED]
    assert journal.quarantined_files() == []
    assert list((landing / "rejected").iterdir()) == []


def test_a_rejected_packet_that_was_released_is_looked_at_again(landing, journal, receiver):
    make_packet(landing, 8, 1).rename(landing / NAME)
    look(receiver)
    rejected = landing / "rejected" / NAME
    shutil.move(make_packet(landing.parent / "mended", 7, 1), rejected)
    assert look(receiver) == []
    journal.forget_file(rejected)
    assert kinds(look(receiver)) == [What.READMITTED, What.LANDED]
    assert list((landing / "rejected").iterdir()) == []


def test_a_packet_moved_but_not_registered_before_a_crash_is_registered(landing, journal):
    path = make_packet(landing, 7, 1)
    done = landing / "done" / "ut200306"
    done.mkdir(parents=True)
    path.rename(done / NAME)
    assert kinds(look(Receiver(landing, journal))) == [What.LANDED]
    assert journal.row(KEY).packet == str(done / NAME)
    assert look(Receiver(landing, journal)) == []


def test_a_packet_registered_but_not_moved_before_a_crash_is_moved(landing, journal, receiver):
    make_packet(landing, 7, 1)
    look(receiver)
    Path(journal.row(KEY).packet).rename(landing / NAME)
    look(Receiver(landing, journal))
    assert Path(journal.row(KEY).packet).is_file()
    assert journal.row(KEY).stage is Stage.LANDED
    assert not (landing / NAME).exists()


def test_a_replacement_cut_off_by_a_crash_is_calibrated_all_the_same(
    landing, journal, receiver, monkeypatch
):
    make_packet(landing, 7, 1)
    look(receiver)
    calibrate(journal)
    content = make_packet(landing, 7, 1, seed=1).read_bytes()

    def crash(*_args, **_facts):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(journal, "advance", crash)
        with pytest.raises(KeyboardInterrupt):
            look(receiver)
    look(Receiver(landing, journal))
    row = journal.row(KEY)
    assert row.stage is Stage.LANDED
    assert Path(row.packet).read_bytes() == content


def test_a_backlog_is_taken_in_portions_newest_first(landing, receiver, monkeypatch):
    monkeypatch.setattr("prepipe.cluster.receive.AT_ONCE", 2)
    for number in (1, 2, 3):
        make_packet(landing, number, 1)
    assert [event.key.exposure for event in look(receiver)] == [3, 2]
    assert not receiver.settled
    make_packet(landing, 9, 1)
    assert [event.key.exposure for event in look(receiver)] == [9, 1]
    assert receiver.settled


def test_a_landing_directory_that_cannot_be_made_is_a_clear_sentence(tmp_path, journal):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file/landing"):
        look(Receiver(tmp_path / "file" / "landing", journal))


def test_a_packet_that_nobody_may_read_is_rejected(landing, journal, receiver, monkeypatch):
    path = make_packet(landing, 7, 1)

    def refuse(_path):
        raise StorageError(f"{path}: Permission denied; give this user the permission")

    monkeypatch.setattr("prepipe.cluster.receive.verify", refuse)
    assert kinds(look(receiver)) == [What.REJECTED]
    assert "Permission denied" in only_quarantined(journal).reason


@pytest.mark.parametrize(
    "oddity",
    [
        {"start": datetime(2020, 3, 6)},
        {"night": Night(date.max)},
    ],
)
def test_a_sound_packet_of_an_absurd_exposure_is_rejected(
    landing, journal, receiver, monkeypatch, oddity
):
    path = make_packet(landing, 7, 1)
    packet = verify(path)
    told = replace(packet, exposure=replace(packet.exposure, **oddity))
    monkeypatch.setattr("prepipe.cluster.receive.verify", lambda _path: told)
    assert kinds(look(receiver)) == [What.REJECTED]
    assert journal.rows() == []


def test_a_zero_lands_as_any_other_packet(landing, journal, receiver):
    make_packet(landing, 7, 1, told=exposure(7, Kind.ZERO))
    look(receiver)
    assert journal.row(KEY).exposure.kind is Kind.ZERO


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_no_damage_ever_stops_the_receiver_or_passes_unseen(tmp_path_factory, data):
    directory = tmp_path_factory.mktemp("damage")
    landing = directory / "landing"
    path = make_packet(landing, 7, 1)
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    change = data.draw(st.sampled_from(["flip", "cut", "grow", "swap"]))
    if change == "flip":
        content[position] ^= 1 << data.draw(st.integers(0, 7))
    elif change == "cut":
        content = content[:position]
    elif change == "grow":
        content[position:position] = data.draw(st.binary(min_size=1, max_size=9))
    else:
        content[position] = (content[position] + data.draw(st.integers(1, 255))) % 256
    path.write_bytes(content)
    journal = Journal(directory / "journal.sqlite")
    try:
        outcome = Counter(kinds(look(Receiver(landing, journal, settle_s=0.0))))
        assert outcome == {What.REJECTED: 1}
        assert journal.rows() == []
    finally:
        journal.close()


def test_a_packet_moved_while_the_journal_was_full_is_registered_later(
    landing, journal, receiver, monkeypatch
):
    make_packet(landing, 7, 1)
    look(receiver)
    make_packet(landing, 8, 1)

    def full(*_args, **_kwargs):
        raise StorageError("database or disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(journal, "add_exposure", full)
        with pytest.raises(StorageError):
            look(receiver)
    assert What.LANDED in kinds(look(receiver))
    assert {row.key.exposure for row in journal.rows(Stage.LANDED)} == {7, 8}

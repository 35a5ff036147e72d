"""The telescope's end at work."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from telescope_end import (
    CAMERA,
    RecordingLink,
    Telescope,
    exposures_of,
    in_background,
    wait_until,
)
from tiny_raw import packet_names, raw_bytes, write_raw

from prepipe.codec.packet import decode, read_header, verify
from prepipe.errors import ConfigError, LinkError, StorageError
from prepipe.link.base import Held
from prepipe.link.local import LocalLink
from prepipe.model import Stage
from prepipe.store import CcdKey, Journal
from prepipe.telescope import Happening, plan_push


def test_every_ccd_of_what_is_there_is_sent(telescope: Telescope) -> None:
    for number in (1, 2):
        write_raw(telescope.raw, number)
    report = telescope.push()
    assert report.succeeded
    assert (report.exposures, report.ccds, report.sent, report.waiting) == (2, 6, 6, 0)
    assert telescope.landed() == packet_names([1, 2])
    assert telescope.stages() == {Stage.SENT: 6}


def test_packets_arrive_sound_and_say_when_their_file_was_written(telescope: Telescope) -> None:
    written_at = write_raw(telescope.raw, 1).stat().st_mtime
    telescope.push()
    for path in telescope.landing.iterdir():
        packet = verify(path)
        assert packet.parameters["found_at"] == pytest.approx(written_at, abs=1e-3)
        assert decode(path).pixels.shape == (32, 48)


def test_packets_are_removed_here_once_sent(telescope: Telescope) -> None:
    write_raw(telescope.raw, 1)
    telescope.push()
    assert list(telescope.packets.iterdir()) == []


def test_a_second_run_sends_nothing_again(telescope: Telescope) -> None:
    write_raw(telescope.raw, 1)
    telescope.push()
    report = telescope.push()
    assert report.succeeded
    assert (report.exposures, report.sent) == (0, 0)


def test_objects_take_the_sites_codec_and_calibrations_the_lossless_one(
    telescope: Telescope,
) -> None:
    telescope.configure(pack={"codec": "jpeg2000", "qstep": 0.0005, "calibrations": "rice"})
    write_raw(telescope.raw, 1, (1,))
    write_raw(telescope.raw, 2, (1,), obstype="zero")
    write_raw(telescope.raw, 3, (1,), obstype="dome flat")
    assert telescope.push().succeeded
    codecs = {
        path.name: (packet.codec, packet.parameters["asked"])
        for path in telescope.landing.iterdir()
        for packet in [read_header(path)]
    }
    assert codecs == {
        "decam_00000001_01.packet": ("jpeg2000", {"qstep": 0.0005}),
        "decam_00000002_01.packet": ("rice", {}),
        "decam_00000003_01.packet": ("rice", {}),
    }


def test_real_raw_files_go_through(telescope: Telescope, shared_data: Path) -> None:
    (telescope.raw / "raw.fits.fz").write_bytes(
        (shared_data / "decam_raw" / "cutout_c4d_200306_000415_ori.fits.fz").read_bytes()
    )
    report = telescope.push()
    assert report.succeeded
    assert telescope.landed() == packet_names([941420], range(1, 63))


def test_one_bad_file_is_quarantined_with_its_reason_and_the_rest_goes_on(
    telescope: Telescope,
) -> None:
    telescope.configure(telescope={"give_up_s": 0.0})
    write_raw(telescope.raw, 1)
    bad = {
        "truncated.fits.fz": (raw_bytes(2)[:-1000], "truncated"),
        "empty.fits": (b"", "empty"),
        "text.fits": (b"no FITS at all", "no FITS file"),
        "nan.fits": (raw_bytes(3, cards={"EXPTIME": "NaN"}), "EXPTIME"),
        "twice.fits": (raw_bytes(4, (5, 5)), "in it twice"),
        "a_duplicate.fits": (raw_bytes(1, seed=9), "already known"),
        "huge_number.fits": (raw_bytes(10**25), "no exposure number"),
    }
    for name, (content, _) in bad.items():
        (telescope.raw / name).write_bytes(content)
    then = time.time() + 5
    os.utime(telescope.raw / "DECam_00000001.fits.fz", (then, then))
    report = telescope.push()
    assert not report.succeeded
    assert telescope.landed() == packet_names([1])
    reasons = {Path(row.path).name: row.reason for row in telescope.journal.quarantined_files()}
    assert reasons.keys() == bad.keys()
    for name, (_, reason) in bad.items():
        assert reason in reasons[name]
    assert {Path(failure.what).name for failure in report.failures} == bad.keys()
    assert telescope.push().succeeded, "what is in quarantine is not looked at again"


def test_a_growing_file_is_a_failure_of_a_run_of_what_is_there_but_not_quarantined(
    telescope: Telescope,
) -> None:
    path = telescope.raw / "DECam_00000001.fits.fz"
    path.write_bytes(raw_bytes(1)[:-1000])
    telescope.configure(telescope={"give_up_s": 60.0})
    (failure,) = telescope.push().failures
    assert (failure.what, "truncated" in failure.reason) == (str(path), True)
    path.write_bytes(raw_bytes(1))
    assert telescope.push().succeeded
    assert telescope.landed() == packet_names([1])


def test_a_ccd_whose_pixels_cannot_be_packed_is_quarantined_and_the_others_go_on(
    telescope: Telescope,
) -> None:
    telescope.configure(pack={"codec": "rice"})
    content = bytearray(raw_bytes(1, (1, 2)))
    # the last HDU's data unit: its table of 32 tiles, and their heap
    end = content.rindex(b"END" + b" " * 77)
    data = end + 80 + -(end + 80) % 2880
    content[data : data + 256] = b"\x7f" * 256
    (telescope.raw / "DECam_00000001.fits.fz").write_bytes(content)
    (failure,) = telescope.push().failures
    assert failure.what == "decam 1 CCD 2"
    assert "tile" in failure.reason
    assert telescope.landed() == {"decam_00000001_01.packet"}
    assert telescope.stages() == {Stage.SENT: 1, Stage.QUARANTINED: 1}


def test_a_vanished_raw_file_fails_its_ccds_after_some_tries_and_can_be_released(
    telescope: Telescope,
) -> None:
    path = write_raw(telescope.raw, 1)
    telescope.link.fault = lambda: LinkError("down")
    telescope.push()
    content = path.read_bytes()
    path.unlink()
    for packet in telescope.packets.iterdir():
        packet.unlink()
    telescope.link.fault = lambda: None
    report = telescope.push()
    assert len(report.failures) == 3
    assert all("vanished" in failure.reason for failure in report.failures)
    assert telescope.stages() == {Stage.QUARANTINED: 3}
    path.write_bytes(content)
    for row in telescope.journal.rows():
        telescope.journal.release(row.key)
    assert telescope.push().succeeded
    assert telescope.landed() == packet_names([1])


def test_a_rewritten_raw_file_is_sent_anew(telescope: Telescope) -> None:
    path = write_raw(telescope.raw, 1)
    telescope.push()
    old = {
        packet.name: read_header(packet).pixel_checksum for packet in telescope.landing.iterdir()
    }
    path.write_bytes(raw_bytes(1, seed=5))
    report = telescope.push()
    assert (report.sent, report.already_there, report.succeeded) == (3, 0, True)
    new = {
        packet.name: read_header(packet).pixel_checksum for packet in telescope.landing.iterdir()
    }
    assert old.keys() == new.keys()
    assert all(old[name] != new[name] for name in old)


def test_a_raw_file_rewritten_while_its_ccds_are_under_way_is_sent_anew(
    telescope: Telescope,
) -> None:
    begun = threading.Event()
    go_on = threading.Event()

    def hold() -> None:
        begun.set()
        go_on.wait(10)

    telescope.link.fault = hold
    path = write_raw(telescope.raw, 1)
    stop, thread = in_background(telescope)
    begun.wait(10)
    path.write_bytes(raw_bytes(1, (25, 1, 44, 7), seed=5))
    time.sleep(0.2)
    go_on.set()
    wait_until(lambda: telescope.stages() == {Stage.SENT: 4})
    stop.set()
    thread.join()
    fresh = Telescope(telescope.root / "fresh")
    write_raw(fresh.raw, 1, (25, 1, 44, 7), seed=5)
    fresh.push()
    for name in fresh.landed():
        sent, wanted = telescope.landing / name, fresh.landing / name
        assert read_header(sent).pixel_checksum == read_header(wanted).pixel_checksum
    fresh.journal.close()


def test_a_ccd_that_changed_before_it_was_sent_is_sent_though_the_line_goes_down_first(
    telescope: Telescope,
) -> None:
    class NamesAndSizes(RecordingLink):
        def inventory(self, since: int = 0) -> dict[str, Held]:
            held = super().inventory(since)
            return {name: Held(each.size, "") for name, each in held.items()}

    path = write_raw(telescope.raw, 1, (25,), compressed=False)
    telescope.link = NamesAndSizes(telescope.landing)
    telescope.link.fault = lambda: LinkError("host: no way to it")
    telescope.push()
    (packed,) = telescope.journal.rows(Stage.PACKED)
    # it had arrived, and nobody knew; its raw file is rewritten, and as long as before
    telescope.landing.mkdir()
    (telescope.landing / packed.packet).write_bytes(bytes(packed.packet_bytes))
    faults = [LinkError("host: no way to it")]
    telescope.link.fault = lambda: faults.pop() if faults else None
    path.write_bytes(raw_bytes(1, (25,), seed=5, compressed=False))
    report = telescope.push()
    assert (report.sent, report.already_there) == (1, 0)
    verify(telescope.landing / packed.packet)


def test_a_ccd_returned_by_its_operator_is_sent_again(telescope: Telescope) -> None:
    write_raw(telescope.raw, 1)
    telescope.push()
    key = CcdKey("decam", 1, 25)
    telescope.journal.return_to(key, Stage.FOUND)
    telescope.push()
    assert telescope.link.sent.count("decam_00000001_25.packet") == 2


@pytest.mark.parametrize("restarted", [False, True])
def test_what_arrived_while_the_journal_could_not_be_written_is_not_sent_again(
    telescope: Telescope, monkeypatch: pytest.MonkeyPatch, restarted: bool
) -> None:
    genuine = telescope.journal.advance
    failures = 0

    def advance(key: CcdKey, stage: Stage, *args: float, **facts: object) -> None:
        nonlocal failures
        if stage is Stage.SENT and (restarted or failures < 2):
            failures += 1
            raise StorageError("the journal cannot be used: disk is full") from ValueError("full")
        genuine(key, stage, *args, **facts)

    monkeypatch.setattr(telescope.journal, "advance", advance)
    write_raw(telescope.raw, 1)
    report = telescope.push()
    if restarted:
        assert not report.succeeded
        monkeypatch.undo()
        report = telescope.push()
    assert report.succeeded
    assert report.already_there >= 1
    assert telescope.stages() == {Stage.SENT: 3}
    assert max(Counter(telescope.link.sent).values()) == 1


def test_packets_registered_at_the_far_side_count_as_sent(telescope: Telescope) -> None:
    write_raw(telescope.raw, 1)
    telescope.link.fault = lambda: LinkError("down")
    telescope.push()
    telescope.link.fault = lambda: None
    (packed,) = telescope.journal.rows(Stage.PACKED)[:1]
    done = telescope.landing / "done" / "2020-03-05"
    done.mkdir(parents=True)
    (telescope.packets / packed.packet).rename(done / packed.packet)
    (telescope.packets / packed.packet).write_bytes((done / packed.packet).read_bytes())
    report = telescope.push()
    assert (report.sent, report.already_there) == (3, 1)
    assert packed.packet not in telescope.link.sent


def test_an_outage_of_the_link_costs_nothing_but_time(telescope: Telescope) -> None:
    down = threading.Event()
    down.set()
    telescope.link.fault = lambda: LinkError("host: x: no way to it") if down.is_set() else None
    for number in (1, 2, 3):
        write_raw(telescope.raw, number)
    stop, thread = in_background(telescope)
    wait_until(lambda: bool(telescope.told(Happening.OBSTACLE)))
    wait_until(lambda: any("no way to it" in row.reason for row in telescope.journal.rows()))
    write_raw(telescope.raw, 4)
    wait_until(lambda: len(telescope.journal.rows(Stage.PACKED, exposure=4)) == 3)
    assert telescope.landed() == set()
    assert Stage.QUARANTINED not in telescope.stages()
    assert all(row.tries == 0 for row in telescope.journal.rows())
    down.clear()
    wait_until(lambda: telescope.stages() == {Stage.SENT: 12})
    stop.set()
    thread.join()
    assert len(telescope.told(Happening.OBSTACLE)) == 1
    assert len(telescope.told(Happening.CLEARED)) == 1
    assert exposures_of(telescope.link.sent)[0] == 4, "newest first after an outage"
    assert max(Counter(telescope.link.sent).values()) == 1


def test_a_run_of_what_is_there_gives_up_when_the_link_stays_down(telescope: Telescope) -> None:
    telescope.link.fault = lambda: LinkError("host: no way to it")
    write_raw(telescope.raw, 1)
    report = telescope.push()
    assert report.waiting == 3
    (failure,) = report.failures
    assert failure.what == "3 CCDs still queued"
    assert "no way to it" in failure.reason
    assert Stage.QUARANTINED not in telescope.stages()


def test_a_full_disk_is_told_once_and_waited_for(
    telescope: Telescope, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prepipe.telescope import pack

    full = threading.Event()
    full.set()
    genuine = pack.write_packet

    def write(*args: object) -> Path:
        if full.is_set():
            raise StorageError("packets: No space left; free some") from OSError(
                errno.ENOSPC, "No space left on device"
            )
        return genuine(*args)

    monkeypatch.setattr(pack, "write_packet", write)
    write_raw(telescope.raw, 1)
    stop, thread = in_background(telescope)
    wait_until(lambda: bool(telescope.told(Happening.OBSTACLE)))
    time.sleep(0.3)
    full.clear()
    wait_until(lambda: telescope.stages() == {Stage.SENT: 3})
    stop.set()
    thread.join()
    assert len(telescope.told(Happening.OBSTACLE)) == 1


def test_a_failure_of_the_link_that_nobody_foresaw_quarantines_after_some_tries(
    telescope: Telescope,
) -> None:
    telescope.link.fault = lambda: ValueError("odd")
    write_raw(telescope.raw, 1, (1,))
    report = telescope.push()
    assert "unexpected ValueError: odd" in report.failures[0].reason
    (row,) = telescope.journal.rows(Stage.QUARANTINED)
    assert row.failed_stage is Stage.PACKED
    assert "Traceback" in row.traceback


def test_batch_lets_a_newer_exposure_overtake_at_once(telescope: Telescope) -> None:
    telescope.link.concurrency = 1
    telescope.configure(push={"method": "batch", "batch": 1}, pack={"workers": 1})
    for number in (1, 2):
        write_raw(telescope.raw, number)
    first_sent = threading.Event()
    go_on = threading.Event()

    def hold() -> None:
        if not first_sent.is_set():
            first_sent.set()
            go_on.wait(10)

    telescope.link.fault = hold
    stop, thread = in_background(telescope)
    first_sent.wait(10)
    write_raw(telescope.raw, 3)
    wait_until(lambda: len(telescope.journal.rows(Stage.PACKED, exposure=3)) == 2)
    go_on.set()
    wait_until(lambda: telescope.stages() == {Stage.SENT: 9})
    stop.set()
    thread.join()
    assert exposures_of(telescope.link.sent) == [2, 3, 3, 3, 2, 2, 1, 1, 1]


def test_parallel_interleaves_exposures(telescope: Telescope) -> None:
    telescope.link.concurrency = 1
    for number in (1, 2):
        write_raw(telescope.raw, number)
    # all files are registered before the first CCD is asked for
    telescope.configure(push={"method": "list", "exposures": [99]}, pack={"workers": 1})
    telescope.push()
    telescope.configure(push={"method": "parallel"}, pack={"workers": 1})
    telescope.push()
    assert exposures_of(telescope.link.sent) == [2, 1, 2, 1, 2, 1]


def test_list_sends_what_is_named_and_tells_what_never_came(telescope: Telescope) -> None:
    telescope.configure(push={"method": "list", "exposures": [3, 1, 8]})
    for number in (1, 2, 3):
        write_raw(telescope.raw, number)
    report = telescope.push()
    assert telescope.landed() == packet_names([1, 3])
    assert report.waiting == 3
    assert [failure.what for failure in report.failures] == ["exposure 8"]
    telescope.configure(push={"method": "batch"})
    assert telescope.push().succeeded
    assert telescope.landed() == packet_names([1, 2, 3])


def test_end_of_night_sends_what_the_far_side_lost(telescope: Telescope) -> None:
    for number in (1, 2, 3):
        write_raw(telescope.raw, number)
    telescope.push()
    for name in ("decam_00000003_25.packet", "decam_00000002_25.packet"):
        (telescope.landing / name).unlink()
    (telescope.landing / "decam_00000001_25.packet").unlink()
    telescope.configure(push={"method": "end-of-night", "exp_min": 2}, pack={"workers": 1})
    sent = len(telescope.link.sent)
    assert telescope.push().succeeded
    assert exposures_of(telescope.link.sent[sent:]) == [3, 2]
    assert telescope.landed() == packet_names([1, 2, 3]) - {"decam_00000001_25.packet"}


def test_stopping_finishes_the_ccds_under_way(telescope: Telescope) -> None:
    begun = threading.Event()
    go_on = threading.Event()

    def hold() -> None:
        begun.set()
        go_on.wait(10)

    telescope.link.fault = hold
    telescope.configure(pack={"workers": 2})
    write_raw(telescope.raw, 1, range(1, 20))
    stop, thread = in_background(telescope)
    begun.wait(10)
    stop.set()
    go_on.set()
    thread.join(10)
    assert not thread.is_alive()
    assert 1 <= telescope.stages()[Stage.SENT] <= telescope.link.concurrency
    assert telescope.push().succeeded
    assert max(Counter(telescope.link.sent).values()) == 1


def test_an_unreadable_directory_is_told_once_and_looked_at_again(telescope: Telescope) -> None:
    away = telescope.raw.rename(telescope.root / "unmounted")
    stop, thread = in_background(telescope)
    wait_until(lambda: bool(telescope.told(Happening.OBSTACLE)))
    time.sleep(0.2)
    write_raw(away, 1)
    away.rename(telescope.raw)
    wait_until(lambda: telescope.stages() == {Stage.SENT: 3})
    stop.set()
    thread.join()
    assert len(telescope.told(Happening.OBSTACLE)) == 1


def test_an_unreadable_directory_is_a_failure_of_a_run_of_what_is_there(
    telescope: Telescope,
) -> None:
    telescope.raw.rmdir()
    (failure,) = telescope.push().failures
    assert "see that it is mounted" in failure.reason


def test_two_pushes_do_not_work_in_one_directory(telescope: Telescope) -> None:
    stop, thread = in_background(telescope)
    lock = telescope.root / "telescope" / "push.lock"
    wait_until(lambda: lock.exists() and bool(lock.read_text()))
    with pytest.raises(ConfigError, match="in use by process"):
        telescope.push()
    stop.set()
    thread.join()
    telescope.push()


def test_a_wrong_setting_of_the_codec_stops_the_push_and_loses_nothing(
    telescope: Telescope,
) -> None:
    with pytest.raises(ConfigError, match="codec"):
        telescope.configure(pack={"codec": "zip"})
        telescope.push()
    telescope.configure(pack={"codec": "none"})
    write_raw(telescope.raw, 1)
    assert telescope.push().succeeded


def test_a_plan_tells_what_would_be_sent_and_changes_nothing(telescope: Telescope) -> None:
    for number in (1, 2, 3):
        write_raw(telescope.raw, number, (1, 2))
    (telescope.raw / "bad.fits").write_bytes(b"junk")
    telescope.configure(push={"method": "list", "exposures": [2, 3]})
    plan = plan_push(telescope.site, telescope.journal, telescope.link, CAMERA)
    assert [(ccd.key.exposure, ccd.key.ccd) for ccd in plan.ccds] == [
        (2, 1),
        (2, 2),
        (3, 1),
        (3, 2),
    ]
    assert plan.left_waiting == 2
    assert [Path(failure.what).name for failure in plan.failures] == ["bad.fits"]
    assert telescope.journal.rows() == []
    assert telescope.journal.known_files() == {}


def test_what_a_killed_push_left_lying_is_removed(telescope: Telescope) -> None:
    telescope.packets.mkdir(parents=True)
    for name in (".decam_00000009_01.packet.1234.part", "decam_00000009_01.packet"):
        (telescope.packets / name).write_bytes(b"half")
    telescope.push()
    assert list(telescope.packets.iterdir()) == []


def test_killed_at_any_moment_and_started_again_nothing_is_lost_or_sent_twice(
    tmp_path: Path,
) -> None:
    numbers = range(1, 7)
    for number in numbers:
        write_raw(tmp_path / "raw", number, range(1, 6))
    rng = random.Random(1)
    command = [sys.executable, str(Path(__file__).with_name("push_victim.py")), str(tmp_path)]
    kills = 0
    while True:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        try:
            process.wait(rng.uniform(0.05, 0.35) if kills < 6 else 60)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            continue
        finally:
            process.stdout.close()
        break
    assert process.returncode == 0
    assert kills >= 2
    wanted = packet_names(numbers, range(1, 6))
    landing = tmp_path / "landing"
    assert set(LocalLink(landing).inventory()) == wanted
    for name in wanted:
        verify(landing / name)
    journal = Journal(tmp_path / "telescope" / "journal.sqlite")
    assert Counter(row.stage for row in journal.rows()) == {Stage.SENT: len(wanted)}
    journal.close()
    sent = Counter((tmp_path / "sent.log").read_text().split())
    assert set(sent.values()) == {1}, "a packet that had arrived was not sent again"
    assert list((tmp_path / "telescope" / "packets").iterdir()) == []

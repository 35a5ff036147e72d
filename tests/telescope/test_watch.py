"""Watching the raw directory."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tiny_raw import raw_bytes, write_raw

from prepipe.telescope.watch import UNFINISHED_S, Arrival, Watcher

GIVE_UP_S = 100.0


@dataclass
class Memory:
    """What a journal would know."""

    files: dict[str, tuple[int, int]] = field(default_factory=dict)

    def known_files(self) -> dict[str, tuple[int, int]]:
        return dict(self.files)

    def known_file(self, path: Path, size: int, mtime_ns: int) -> bool:
        return self.files.get(str(path)) == (size, mtime_ns)

    def remember(self, arrival: Arrival) -> None:
        self.files[str(arrival.path)] = (arrival.size, arrival.mtime_ns)


class Watched:
    """A watched directory with clocks that stand still until told."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.memory = Memory()
        self.now = 0.0
        self.restart()

    def restart(self) -> None:
        self.watcher = Watcher(
            self.directory,
            "*.fits*",
            GIVE_UP_S,
            self.memory,
            clock=lambda: self.now,
            wall_clock=lambda: time.time() + self.now,
        )

    def poll(self) -> list[str]:
        """Names of complete files."""
        return [arrival.path.name for arrival in self.watcher.poll() if not arrival.fault]

    def faults(self) -> dict[str, str]:
        return {found.path.name: found.fault for found in self.watcher.poll() if found.fault}


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    raw = tmp_path / "raw"
    raw.mkdir()
    return Watched(raw)


def test_a_complete_file_is_taken_at_the_second_look(watched: Watched) -> None:
    write_raw(watched.directory, 1)
    assert watched.poll() == []
    assert watched.poll() == ["DECam_00000001.fits.fz"]


def test_a_file_comes_again_until_it_is_known(watched: Watched) -> None:
    write_raw(watched.directory, 1)
    watched.watcher.poll()
    (arrival,) = watched.watcher.poll()
    assert len(watched.watcher.poll()) == 1
    watched.memory.remember(arrival)
    assert watched.watcher.poll() == []


def test_a_file_is_expected_while_it_grows_until_it_is_known(watched: Watched) -> None:
    path = watched.directory / "DECam_00000001.fits.fz"
    watched.watcher.poll()
    assert not watched.watcher.expects_a_file
    path.write_bytes(b"SIMPLE")
    watched.watcher.poll()
    assert watched.watcher.expects_a_file
    watched.now += UNFINISHED_S
    path.write_bytes(raw_bytes(1))
    watched.watcher.poll()
    assert watched.watcher.expects_a_file
    (arrival,) = watched.watcher.poll()
    assert watched.watcher.expects_a_file
    watched.memory.remember(arrival)
    watched.watcher.poll()
    assert not watched.watcher.expects_a_file


def test_nothing_is_expected_of_a_file_that_is_left_incomplete(watched: Watched) -> None:
    (watched.directory / "DECam_00000001.fits.fz").write_bytes(raw_bytes(1)[:-1000])
    watched.watcher.poll()
    watched.now += UNFINISHED_S
    watched.watcher.poll()
    assert not watched.watcher.expects_a_file


def test_files_there_at_the_start_count_unless_known_in_that_state(watched: Watched) -> None:
    known = write_raw(watched.directory, 1)
    write_raw(watched.directory, 2)
    status = known.stat()
    watched.memory.files[str(known)] = (status.st_size, status.st_mtime_ns)
    watched.poll()
    assert watched.poll() == ["DECam_00000002.fits.fz"]


def test_a_rewritten_file_is_taken_anew(watched: Watched) -> None:
    path = write_raw(watched.directory, 1)
    watched.watcher.poll()
    watched.memory.remember(watched.watcher.poll()[0])
    path.write_bytes(raw_bytes(1, (25,)))
    assert watched.poll() == []
    assert watched.poll() == [path.name]


def test_the_newest_file_comes_first(watched: Watched) -> None:
    for number, age in ((1, 50), (2, 10), (3, 90)):
        path = write_raw(watched.directory, number)
        then = time.time() - age
        os.utime(path, (then, then))
    watched.poll()
    assert [name[6:14] for name in watched.poll()] == ["00000002", "00000001", "00000003"]


def test_a_growing_file_is_waited_for_as_long_as_it_grows(watched: Watched) -> None:
    content = raw_bytes(1)
    path = watched.directory / "DECam_00000001.fits.fz"
    step = len(content) // 5
    for end in range(step, len(content), step):
        path.write_bytes(content[:end])
        watched.now += 0.9 * GIVE_UP_S
        assert watched.watcher.poll() == []
    path.write_bytes(content)
    assert watched.poll() == []
    assert watched.poll() == [path.name]


def test_a_file_that_rests_before_its_end_is_not_taken_and_goes_on_when_it_grows(
    watched: Watched,
) -> None:
    content = raw_bytes(1)
    path = watched.directory / "DECam_00000001.fits.fz"
    path.write_bytes(content[:-1000])
    for _ in range(4):
        assert watched.watcher.poll() == []
    assert "truncated" in watched.watcher.waiting()[path]
    path.write_bytes(content)
    watched.poll()
    assert watched.poll() == [path.name]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (raw_bytes(1)[:-1000], "truncated"),
        (b"", "empty"),
        (b"not a FITS file at all" * 500, "no FITS file"),
        (raw_bytes(1) + b"x" * 100, "bytes after HDU"),
    ],
    ids=["truncated", "empty", "not FITS", "bytes after the end"],
)
def test_a_file_that_stays_incomplete_is_given_up_with_its_reason(
    watched: Watched, content: bytes, reason: str
) -> None:
    path = watched.directory / "DECam_00000001.fits.fz"
    path.write_bytes(content)
    for _ in range(3):
        assert watched.watcher.poll() == []
    watched.now += 1.01 * GIVE_UP_S
    assert reason in watched.faults()[path.name]


def test_a_broken_file_that_lay_there_for_long_is_given_up_at_the_second_look(
    watched: Watched,
) -> None:
    path = watched.directory / "old.fits"
    path.write_bytes(b"junk")
    then = time.time() - 10 * GIVE_UP_S
    os.utime(path, (then, then))
    assert watched.faults() == {}
    assert list(watched.faults()) == [path.name]


def test_a_vanished_file_is_forgotten_without_noise(watched: Watched) -> None:
    path = write_raw(watched.directory, 1)
    watched.poll()
    path.unlink()
    assert watched.watcher.poll() == []
    assert watched.watcher.waiting() == {}
    assert watched.watcher.trouble == ""


def test_a_file_that_vanishes_while_it_is_read_is_forgotten(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_raw(watched.directory, 1)
    watched.poll()
    from prepipe.telescope import watch

    def vanish(found: Path) -> object:
        found.unlink()
        return original(found)

    original = watch.scan_fits
    monkeypatch.setattr(watch, "scan_fits", vanish)
    assert watched.watcher.poll() == []
    assert not path.exists()


def test_a_file_that_may_not_be_read_is_given_up_after_the_limit(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    # patched, for root may read everything
    path = write_raw(watched.directory, 1)
    genuine = os.open

    def refuse(name: object, *args: object, **options: object) -> int:
        if str(name) == str(path):
            raise PermissionError(13, "Permission denied")
        return genuine(name, *args, **options)

    monkeypatch.setattr(os, "open", refuse)
    for _ in range(3):
        assert watched.watcher.poll() == []
    watched.now += 1.01 * GIVE_UP_S
    assert "Permission denied" in watched.faults()[path.name]
    monkeypatch.undo()
    assert watched.poll() == [path.name]


def test_what_is_no_exposure_is_not_looked_at(watched: Watched) -> None:
    directory = watched.directory
    (directory / "night.fits").mkdir()
    os.mkfifo(directory / "pipe.fits")
    (directory / "loop.fits").symlink_to(directory / "loop.fits")
    (directory / "broken.fits").symlink_to(directory / "nowhere.fits")
    for name in (".hidden.fits", "x.fits.part", "notes.txt"):
        (directory / name).write_bytes(raw_bytes(1))
    (directory / os.fsdecode(b"latin-\xe9.fits")).write_bytes(raw_bytes(1))
    for _ in range(3):
        watched.now += GIVE_UP_S
        assert watched.watcher.poll() == []


def test_a_link_to_a_file_is_followed(watched: Watched, tmp_path: Path) -> None:
    elsewhere = write_raw(tmp_path / "elsewhere", 1)
    (watched.directory / elsewhere.name).symlink_to(elsewhere)
    watched.poll()
    assert watched.poll() == [elsewhere.name]


def test_an_unreadable_directory_is_told_and_looked_at_again(watched: Watched) -> None:
    hidden = watched.directory.with_name("unmounted")
    write_raw(watched.directory, 1)
    watched.poll()
    watched.directory.rename(hidden)
    assert watched.poll() == []
    assert "see that it is mounted" in watched.watcher.trouble
    hidden.rename(watched.directory)
    assert watched.poll() == ["DECam_00000001.fits.fz"]
    assert watched.watcher.trouble == ""


def test_a_directory_is_not_searched_further_down(watched: Watched) -> None:
    write_raw(watched.directory / "below", 1)
    watched.poll()
    assert watched.poll() == []


def promising(extensions: int) -> bytes:
    """A file of three CCDs whose primary header promises so many."""
    return raw_bytes(1, cards={"NEXTEND": extensions})


def test_a_file_that_lacks_promised_extensions_counts_as_growing_for_a_while(
    watched: Watched,
) -> None:
    path = watched.directory / "DECam_00000001.fits.fz"
    path.write_bytes(promising(70))
    watched.now += 1
    for _ in range(3):
        assert watched.poll() == []
    assert watched.faults() == {}
    watched.now += UNFINISHED_S
    assert watched.poll() == [path.name]


def test_a_file_with_all_its_extensions_is_taken_at_once(watched: Watched) -> None:
    path = watched.directory / "DECam_00000001.fits.fz"
    path.write_bytes(promising(3))
    watched.poll()
    assert watched.poll() == [path.name]


@pytest.mark.parametrize("why", ["it is old", "what is there is asked for"])
def test_a_cut_out_that_is_not_being_written_is_taken_at_once(watched: Watched, why: str) -> None:
    path = watched.directory / "DECam_00000001.fits.fz"
    path.write_bytes(promising(70))
    if why == "it is old":
        then = time.time() - 2 * UNFINISHED_S
        os.utime(path, (then, then))
    else:
        watched.watcher.unfinished_s = 0.0
    watched.poll()
    assert watched.poll() == [path.name]

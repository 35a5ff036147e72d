"""Partial files shared by processes: nothing acknowledged is lost, nothing wrong is committed."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from receiving import (
    NAME,
    Receiving,
    as_a_plain_user,
    chunks,
    content,
    names,
    offer,
    partials,
)

from prepipe.files import sweep_partials
from prepipe.link.partial import Landing
from prepipe.link.protocol import (
    CHUNK_BYTES,
    Acknowledged,
    Chunk,
    Committed,
    Has,
    Message,
    Offer,
    Refused,
    bitmap,
    chunk_count,
    from_bitmap,
)

DATA = content(3 * CHUNK_BYTES + 1000)


def part_name(data: bytes, name: str = NAME) -> str:
    return f".{name}.{offer(data).checksum[:16]}.part"


def marks_name(data: bytes, name: str = NAME) -> str:
    return f".{name}.{offer(data).checksum[:16]}.marks.part"


@pytest.fixture
def far(landing: Path) -> Iterator[Receiving]:
    with Receiving(landing) as process:
        yield process


def test_a_file_lands_whole_under_its_name_and_leaves_nothing_partial(
    far: Receiving, landing: Path
) -> None:
    far.send(offer(DATA), *chunks(DATA))
    answers = far.answers(6)
    assert answers == [Has(1, b"\0"), *(Acknowledged(1, i) for i in range(4)), Committed(1)]
    assert names(landing) == [NAME]
    assert (landing / NAME).read_bytes() == DATA


@pytest.mark.parametrize("size", [1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1])
def test_files_of_any_size_land(far: Receiving, landing: Path, size: int) -> None:
    data = content(size)
    far.send(offer(data), *chunks(data))
    assert far.until(Committed) == Committed(1)
    assert (landing / NAME).read_bytes() == data


def test_nothing_partial_bears_the_final_name(far: Receiving, landing: Path) -> None:
    far.send(offer(DATA), *chunks(DATA)[1:])
    far.answers(4)
    assert names(landing) == [marks_name(DATA), part_name(DATA)]


def test_an_original_lands_in_the_archive(far: Receiving, landing: Path) -> None:
    far.send(offer(DATA, place="archive"), *chunks(DATA))
    assert far.until(Committed) == Committed(1)
    assert names(landing) == ["archive"]
    assert (landing / "archive" / NAME).read_bytes() == DATA


def test_a_file_in_the_archive_does_not_stand_for_the_packet(far: Receiving, landing: Path) -> None:
    (landing / "archive").mkdir()
    (landing / "archive" / NAME).write_bytes(DATA)
    far.send(offer(DATA))
    assert far.answer() == Has(1, b"\0")


@pytest.mark.parametrize("place", ["", "done/ut200306", "done/ut991231"])
def test_a_file_that_is_there_need_not_be_sent(far: Receiving, landing: Path, place: str) -> None:
    (landing / place).mkdir(parents=True, exist_ok=True)
    (landing / place / NAME).write_bytes(DATA)
    far.send(offer(DATA))
    assert far.answer() == Committed(1, already=True)
    assert partials(landing) == []


def test_a_file_of_that_name_and_size_but_other_content_is_replaced(
    far: Receiving, landing: Path
) -> None:
    (landing / NAME).write_bytes(content(len(DATA), seed=1))
    far.send(offer(DATA))
    assert far.answer() == Has(1, b"\0")
    far.send(*chunks(DATA))
    far.until(Committed)
    assert (landing / NAME).read_bytes() == DATA
    assert names(landing) == [NAME]


def test_a_rejected_packet_may_come_again(far: Receiving, landing: Path) -> None:
    (landing / "rejected").mkdir()
    (landing / "rejected" / NAME).write_bytes(DATA)
    far.send(offer(DATA))
    assert far.answer() == Has(1, b"\0")


def test_a_sender_killed_midway_need_not_send_again_what_was_acknowledged(landing: Path) -> None:
    with Receiving(landing) as first:
        first.send(offer(DATA), chunks(DATA)[0], chunks(DATA)[2])
        first.answers(3)
        first.hang_up()
        assert first.end()[0] == 0
    with Receiving(landing) as second:
        second.send(offer(DATA, 7))
        assert second.answer() == Has(7, bitmap({0, 2}, 4))
        second.send(chunks(DATA, 7)[1], chunks(DATA, 7)[3])
        assert second.until(Committed) == Committed(7)
    assert (landing / NAME).read_bytes() == DATA


def test_a_receiver_killed_before_it_could_commit_is_made_up_for_by_the_next_offer(
    landing: Path,
) -> None:
    with Landing(landing).open(offer(DATA), create=True) as partial:
        for chunk in chunks(DATA):
            partial.write(chunk)
    with Receiving(landing) as far:
        far.send(offer(DATA))
        assert far.answers(2) == [Has(1, b"\x0f"), Committed(1)]
    assert names(landing) == [NAME]


def test_a_receiver_killed_right_after_the_rename_leaves_nothing_behind_for_long(
    far: Receiving, landing: Path
) -> None:
    with Landing(landing).open(offer(DATA), create=True) as partial:
        for chunk in chunks(DATA):
            partial.write(chunk)
    (landing / part_name(DATA)).rename(landing / NAME)
    far.send(offer(DATA))
    assert far.answer() == Committed(1, already=True)
    assert names(landing) == [NAME]


def test_chunks_may_come_right_behind_the_offer_of_a_file_that_is_there(
    far: Receiving, landing: Path
) -> None:
    (landing / NAME).write_bytes(DATA)
    far.send(offer(DATA), *chunks(DATA))
    assert set(far.answers(5)) == {Committed(1, already=True)}
    assert names(landing) == [NAME]


def test_only_a_chunk_that_was_damaged_on_disk_is_asked_for_again(
    far: Receiving, landing: Path
) -> None:
    far.send(offer(DATA), *chunks(DATA)[:3])
    far.answers(4)
    with (landing / part_name(DATA)).open("r+b") as stream:
        stream.seek(CHUNK_BYTES + 5)
        stream.write(b"damage")
    far.send(chunks(DATA)[3])
    assert far.answers(2) == [Acknowledged(1, 3), Has(1, bitmap({0, 2, 3}, 4))]
    far.send(chunks(DATA)[1])
    assert far.until(Committed) == Committed(1)
    assert (landing / NAME).read_bytes() == DATA


def test_data_lost_in_a_power_cut_are_asked_for_again_though_marked(
    far: Receiving, landing: Path
) -> None:
    far.send(offer(DATA), *chunks(DATA)[:3])
    far.answers(4)
    os.truncate(landing / part_name(DATA), CHUNK_BYTES)
    far.send(chunks(DATA)[3])
    assert far.until(Has) == Has(1, bitmap({0, 3}, 4))


def test_partial_files_removed_under_way_are_begun_anew(far: Receiving, landing: Path) -> None:
    far.send(offer(DATA), *chunks(DATA)[:3])
    far.answers(4)
    for name in partials(landing):
        (landing / name).unlink()
    far.send(chunks(DATA)[3])
    assert far.answers(2) == [Acknowledged(1, 3), Has(1, bitmap({3}, 4))]
    far.send(*chunks(DATA)[:3])
    assert far.until(Committed) == Committed(1)


def test_a_file_that_changed_while_it_was_sent_is_refused_and_removed(
    far: Receiving, landing: Path
) -> None:
    changed = DATA[:-1] + bytes([DATA[-1] ^ 1])
    far.send(offer(DATA), *chunks(changed))
    refused = far.until(Refused)
    assert (refused.reason, refused.id) == ("checksum", 1)
    assert "offer it anew" in refused.text
    assert names(landing) == []
    far.send(chunks(changed)[0])
    assert far.answer() == refused


def test_the_same_chunk_twice_changes_nothing(far: Receiving, landing: Path) -> None:
    far.send(offer(DATA), *chunks(DATA)[:2], *chunks(DATA)[:2], *chunks(DATA)[2:])
    assert far.until(Committed) == Committed(1)
    assert (landing / NAME).read_bytes() == DATA


def test_a_late_chunk_of_what_another_process_committed_is_answered_so(landing: Path) -> None:
    with Receiving(landing) as one, Receiving(landing) as other:
        one.send(offer(DATA), chunks(DATA)[0])
        one.answers(2)
        other.send(offer(DATA, 5), *chunks(DATA, 5))
        other.until(Committed)
        written = (landing / NAME).stat()
        one.send(chunks(DATA)[0])
        assert one.answer() == Committed(1, already=True)
        assert (landing / NAME).stat().st_mtime_ns == written.st_mtime_ns
    assert names(landing) == [NAME]


def test_a_late_chunk_of_what_was_moved_on_is_answered_so_too(landing: Path) -> None:
    with Receiving(landing) as one, Receiving(landing) as other:
        one.send(offer(DATA), chunks(DATA)[0])
        one.answers(2)
        other.send(offer(DATA, 5), *chunks(DATA, 5))
        other.until(Committed)
        (landing / "done" / "ut200306").mkdir(parents=True)
        (landing / NAME).rename(landing / "done" / "ut200306" / NAME)
        one.send(chunks(DATA)[0])
        assert one.answer() == Committed(1, already=True)
    assert names(landing) == ["done"]


def test_a_lying_late_chunk_does_not_change_what_was_committed(landing: Path) -> None:
    with Receiving(landing) as one, Receiving(landing) as other:
        one.send(offer(DATA), chunks(DATA)[0])
        one.answers(2)
        other.send(offer(DATA), *chunks(DATA))
        other.until(Committed)
        one.send(Chunk.of(1, 0, bytes(CHUNK_BYTES)))
        assert isinstance(one.answer(), Committed)
    assert (landing / NAME).read_bytes() == DATA


def test_two_contents_under_one_name_are_kept_apart_and_each_is_verified(landing: Path) -> None:
    second = content(len(DATA), seed=1)
    with Receiving(landing) as one, Receiving(landing) as other:
        one.send(offer(DATA), *chunks(DATA)[:3])
        other.send(offer(second), *chunks(second)[:3])
        assert one.answers(4)[-1] == other.answers(4)[-1] == Acknowledged(1, 2)
        assert len(partials(landing)) == 4
        one.send(chunks(DATA)[3])
        one.until(Committed)
        assert (landing / NAME).read_bytes() == DATA
        other.send(chunks(second)[3])
        other.until(Committed)
        assert (landing / NAME).read_bytes() == second
    assert names(landing) == [NAME]


def test_two_senders_of_one_file_share_the_work(landing: Path) -> None:
    with Receiving(landing) as one, Receiving(landing) as other:
        one.send(offer(DATA), *chunks(DATA)[:2])
        one.answers(3)
        other.send(offer(DATA, 9))
        assert other.answer() == Has(9, bitmap({0, 1}, 4))
        other.send(*chunks(DATA, 9)[2:])
        assert other.until(Committed) == Committed(9)
        one.send(offer(DATA))
        assert one.answer() == Committed(1, already=True)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    count=st.integers(1, 6),
    tail=st.integers(1, CHUNK_BYTES),
    processes=st.integers(1, 3),
    seed=st.integers(0, 1 << 32),
    kills=st.lists(st.integers(0, 12), max_size=2),
)
def test_chunks_dealt_at_random_over_processes_that_are_killed_make_up_the_file(
    tmp_path_factory: pytest.TempPathFactory,
    count: int,
    tail: int,
    processes: int,
    seed: int,
    kills: list[int],
) -> None:
    landing = tmp_path_factory.mktemp("landing")
    data = content((count - 1) * CHUNK_BYTES + tail, seed)
    with ExitStack() as stack:
        sender = Sender(stack, landing, data, processes, seed)
        sender.send_all(kills)
    assert names(landing) == [NAME]
    assert (landing / NAME).read_bytes() == data


class Sender:
    """Deals the chunks of one file, some of them twice, and kills processes on the way."""

    def __init__(
        self, stack: ExitStack, landing: Path, data: bytes, processes: int, seed: int
    ) -> None:
        self.stack = stack
        self.landing = landing
        self.data = data
        self.chunks = chunks(data)
        self.random = random.Random(seed)
        self.acknowledged: set[int] = set()
        self.committed = False
        self.far = [self.start() for _ in range(processes)]

    def start(self) -> Receiving:
        far = self.stack.enter_context(Receiving(self.landing))
        far.send(offer(self.data))
        answer = far.answer()
        if isinstance(answer, Has):
            there = from_bitmap(answer.bits, len(self.chunks))
            assert there >= self.acknowledged, "what was acknowledged is asked for again"
            self.acknowledged |= there
        else:
            self.hear(answer)
        return far

    def hear(self, answer: Message) -> None:
        assert isinstance(answer, Acknowledged | Committed | Has), answer
        if isinstance(answer, Acknowledged):
            self.acknowledged.add(answer.index)
        self.committed = self.committed or isinstance(answer, Committed)

    def send_all(self, kills: list[int]) -> None:
        step = 0
        while not self.committed:
            missing = set(range(len(self.chunks))) - self.acknowledged
            dealt = [*missing, *self.random.choices(range(len(self.chunks)), k=2)]
            self.random.shuffle(dealt)
            for index in dealt:
                if step in kills:
                    self.kill()
                self.random.choice(self.far).send(self.chunks[index])
                step += 1
            self.hear_all()

    def kill(self) -> None:
        victim = self.random.randrange(len(self.far))
        for answer in self.far[victim].kill():
            self.hear(answer)
        self.far[victim] = self.start()

    def hear_all(self) -> None:
        """Offer anew, which is answered after all that was sent before."""
        for far in self.far:
            far.send(offer(self.data))
            while isinstance(answer := far.answer(), Acknowledged):
                self.hear(answer)
            self.hear(answer)


def test_a_process_killed_while_four_share_many_files_loses_nothing(landing: Path) -> None:
    deal = random.Random(1)
    files = {f"decam_00941420_{ccd:02d}.packet": content(900_000, ccd) for ccd in range(1, 13)}
    offers = [offer(data, i, name) for i, (name, data) in enumerate(files.items())]
    pieces = [chunk for i, data in enumerate(files.values()) for chunk in chunks(data, i)]
    with ExitStack() as stack:
        far = [stack.enter_context(Receiving(landing)) for _ in range(4)]
        for one in far:
            one.send(*offers)
        deal.shuffle(pieces)
        for piece in pieces:
            deal.choice(far).send(piece)
        far[0].process.send_signal(signal.SIGKILL)
        far[0].process.wait()
        survivor = far[1]
        survivor.send(*(offer(data, 100 + i, name) for i, (name, data) in enumerate(files.items())))
        committed: set[int] = set()
        while len({number for number in committed if number >= 100}) < len(files):
            answer = survivor.answer()
            if isinstance(answer, Committed):
                committed.add(answer.id)
            elif isinstance(answer, Has) and answer.id >= 100:
                data = list(files.values())[answer.id - 100]
                there = from_bitmap(answer.bits, chunk_count(len(data)))
                survivor.send(*(c for c in chunks(data, answer.id) if c.index not in there))
    assert names(landing) == sorted(files)
    for name, data in files.items():
        assert (landing / name).read_bytes() == data


def test_partial_files_a_day_old_are_swept_and_younger_ones_are_not(
    far: Receiving, landing: Path
) -> None:
    far.send(offer(DATA), chunks(DATA)[0], offer(DATA, 2, place="archive"), chunks(DATA, 2)[0])
    far.answers(4)
    assert sweep_partials(landing) == 0
    for path in (*landing.glob(".*.part"), *landing.glob("archive/.*.part")):
        os.utime(path, (time.time() - 90_000,) * 2)
    assert sweep_partials(landing) == 4
    assert partials(landing) == []


@pytest.mark.parametrize("which", [part_name, marks_name])
def test_a_symbolic_link_planted_as_a_partial_file_is_not_followed(
    far: Receiving, landing: Path, tmp_path: Path, which: object
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    assert callable(which)
    (landing / which(DATA)).symlink_to(victim)
    far.send(offer(DATA), *chunks(DATA))
    for answer in far.answers(5):
        assert isinstance(answer, Refused)
        assert answer.reason == "file"
        assert "symbolic link" in answer.text
    assert victim.read_bytes() == b"precious"


def test_a_symbolic_link_planted_as_the_archive_is_not_followed(
    far: Receiving, landing: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (landing / "archive").symlink_to(elsewhere)
    far.send(offer(DATA, place="archive"))
    answer = far.answer()
    assert isinstance(answer, Refused)
    assert answer.reason == "storage"
    assert names(elsewhere) == []


def test_a_symbolic_link_under_the_final_name_is_replaced_not_followed(
    far: Receiving, landing: Path, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(bytes(len(DATA)))
    (landing / NAME).symlink_to(victim)
    far.send(offer(DATA), *chunks(DATA))
    far.until(Committed)
    assert victim.read_bytes() == bytes(len(DATA))
    assert (landing / NAME).read_bytes() == DATA
    assert not (landing / NAME).is_symlink()


def test_a_pipe_planted_as_a_partial_file_stops_nobody(far: Receiving, landing: Path) -> None:
    os.mkfifo(landing / part_name(DATA))
    far.send(offer(DATA))
    answer = far.answer()
    assert isinstance(answer, Refused)
    assert "no plain file; remove it" in answer.text
    other = content(1000)
    far.send(offer(other, 2), *chunks(other, 2))
    assert far.until(Committed) == Committed(2)


def test_a_directory_under_the_final_name_is_told_and_the_partial_file_stays(
    far: Receiving, landing: Path
) -> None:
    (landing / NAME).mkdir()
    far.send(offer(DATA), *chunks(DATA))
    refused = far.until(Refused)
    assert (refused.reason, refused.id) == ("file", 1)
    assert len(partials(landing)) == 2


def test_a_partial_file_that_may_not_be_written_is_the_fault_of_that_file_alone(
    landing: Path,
) -> None:
    (landing / part_name(DATA)).touch()
    (landing / part_name(DATA)).chmod(0o444)
    with Receiving(landing, prefix=as_a_plain_user()) as far:
        far.send(offer(DATA))
        assert far.until(Refused).reason == "file"
        other = content(1000)
        far.send(offer(other, 2), *chunks(other, 2))
        far.until(Committed)


def test_a_landing_directory_closed_under_way_is_the_fault_of_no_file(landing: Path) -> None:
    with Receiving(landing, prefix=as_a_plain_user()) as far:
        far.send(offer(DATA), *chunks(DATA)[:-1])
        far.until(Acknowledged)
        landing.chmod(0o555)
        far.send(chunks(DATA)[-1])
        assert far.until(Refused).reason == "storage"


def test_more_files_under_way_than_may_be_open_all_land(far: Receiving, landing: Path) -> None:
    files = [content(CHUNK_BYTES + 1, seed) for seed in range(140)]
    sent = [offer(data, i, f"decam_{i:08d}_01.packet") for i, data in enumerate(files)]
    for part in (0, 1):
        far.send(*sent)
        for i, data in enumerate(files):
            far.send(chunks(data, i)[part])
            while not isinstance(far.answer(), Acknowledged):
                pass
        if part == 0:
            assert far.open_files() <= 3 * 128 + 20
    far.hang_up()
    far.rest()
    assert names(landing) == [one.name for one in sent]


def test_committed_files_are_not_held_open(far: Receiving, landing: Path) -> None:
    from prepipe.link.protocol import Ping, Pong

    far.send(offer(DATA), *chunks(DATA))
    far.until(Committed)
    far.send(Ping(1))
    far.until(Pong)
    far.send(Ping(2))  # answered after the descriptors of the first were closed
    far.until(Pong)
    opened = [str(entry.readlink()) for entry in Path(f"/proc/{far.process.pid}/fd").iterdir()]
    assert not [path for path in opened if str(landing) in path]


def test_a_file_system_without_locks_serves_all_the_same(
    landing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno
    import fcntl

    def without(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", without)
    far = Landing(landing)
    with far.open(offer(DATA), create=True) as partial:
        assert all(partial.write_at_once(chunk) for chunk in chunks(DATA))
    assert far.settle(offer(DATA)) == [Committed(1)]
    assert names(landing) == [NAME]


def test_whoever_writes_while_another_verifies_waits_for_the_outcome(landing: Path) -> None:
    far = Landing(landing)
    told: Offer = offer(DATA)
    with far.open(told, create=True) as verifier, far.open(told, create=False) as writer:
        with verifier.locked():
            assert not writer.write_at_once(chunks(DATA)[0])
        assert writer.write_at_once(chunks(DATA)[0])


def test_a_descriptor_from_before_the_commit_writes_nothing_any_more(landing: Path) -> None:
    far = Landing(landing)
    with far.open(offer(DATA), create=True) as early:
        assert all(early.write_at_once(chunk) for chunk in chunks(DATA))
        assert far.settle(offer(DATA)) == [Committed(1)]
        assert not early.write_at_once(Chunk.of(1, 0, bytes(CHUNK_BYTES)))
    assert (landing / NAME).read_bytes() == DATA


def test_a_file_committed_while_its_partial_file_was_made_anew_is_found(
    landing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Landing.open

    def just_after_the_commit(self: Landing, told: Offer, *, create: bool) -> object:
        (landing / NAME).write_bytes(DATA)
        return opened(self, told, create=create)

    monkeypatch.setattr(Landing, "open", just_after_the_commit)
    assert Landing(landing).settle(offer(DATA), chunks(DATA)[0]) == [Committed(1, already=True)]
    assert names(landing) == [NAME]

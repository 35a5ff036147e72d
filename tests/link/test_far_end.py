"""The far end as sshd runs it: a process that cannot be confused, and does not outlive its use."""

from __future__ import annotations

import json
import os
import pty
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from receiving import (
    COMMAND,
    NAME,
    PATIENCE_S,
    Receiving,
    as_a_plain_user,
    chunks,
    content,
    names,
    offer,
    partials,
)

from prepipe.link.far_end import KNOWN_OFFERS, FarEnd
from prepipe.link.partial import Landing, Partial
from prepipe.link.protocol import (
    CHUNK_BYTES,
    GREETING,
    VERSION,
    Acknowledged,
    Chunk,
    Committed,
    Frames,
    Has,
    Hello,
    Inventory,
    ListFiles,
    Offer,
    Ping,
    Pong,
    Refused,
    Welcome,
    frame,
)
from prepipe.names import parse_name

DATA = content(2 * CHUNK_BYTES + 10)


@pytest.fixture
def far(landing: Path) -> Iterator[Receiving]:
    with Receiving(landing) as process:
        yield process


def lands(far: Receiving, landing: Path, number: int = 1000) -> None:
    """A file goes through: the connection goes on."""
    name = f"decam_{number:08d}_07.packet"
    far.send(offer(DATA, number, name), *chunks(DATA, number))
    assert far.until(Committed) == Committed(number)
    assert (landing / name).read_bytes() == DATA


def test_it_greets_before_it_is_spoken_to(landing: Path) -> None:
    with Receiving(landing, hello=None) as far:
        assert far.process.stdout is not None
        assert far.process.stdout.read(len(GREETING)) == GREETING


def test_it_introduces_itself_with_version_clock_and_free_space(far: Receiving) -> None:
    welcome = far.welcome
    assert isinstance(welcome, Welcome)
    assert welcome.version == VERSION
    assert abs(welcome.time - time.time()) < 60
    assert welcome.host == os.uname().nodename
    assert welcome.free_bytes > 0


def test_another_version_is_told_with_both_versions_and_what_to_do(landing: Path) -> None:
    with Receiving(landing, hello=Hello(7, "9.9.9", "ctio")) as far:
        refused = far.welcome
        assert isinstance(refused, Refused)
        assert (refused.reason, refused.id) == ("version", None)
        for told in ("version 7", f"version {VERSION}", "9.9.9", "install the same prepipe"):
            assert told in refused.text
        code, said = far.end()
        assert code == 1
        assert said.count("\n") == 1
        assert "version 7" in said


def test_a_ping_is_answered(far: Receiving) -> None:
    far.send(Ping(42))
    assert far.answer() == Pong(42)


@pytest.mark.parametrize(
    "name",
    [
        "../decam_00941420_25.packet",
        "/etc/decam_00941420_25.packet",
        "a/decam_00941420_25.packet",
        "decam_00941420_25.packet\n",
        "decam_00941420_25\n.packet",
        "decam_00941420_25.packet\0",
        "decam_00941420_25.packet" + "x" * 4096,
        "d" * 4096,
        "",
        ".",
        "..",
        "-rf",
        ".hidden_00941420_25.packet",
        "décam_00941420_25.packet",
        "\ud800",
        "decam_00941420_25.fits",
    ],
    ids=lambda name: ascii(name)[:40],
)
def test_a_name_that_is_no_packets_is_refused_and_the_connection_goes_on(
    far: Receiving, landing: Path, name: str
) -> None:
    far.send(offer(DATA, name=name), *chunks(DATA))
    for refused in far.answers(4):
        assert isinstance(refused, Refused)
        assert (refused.reason, refused.id) == ("name", 1)
        assert len(refused.text) < 1000
    assert names(landing) == []
    assert names(landing.parent) == ["landing"]
    lands(far, landing)


def test_a_chunk_that_was_never_offered_is_refused_and_the_connection_goes_on(
    far: Receiving, landing: Path
) -> None:
    far.send(chunks(DATA)[0])
    refused = far.answer()
    assert isinstance(refused, Refused)
    assert (refused.reason, refused.id) == ("protocol", 1)
    lands(far, landing)


def gives_up(far: Receiving, match: str) -> None:
    """The process tells why in one sentence at both outlets and ends with 1."""
    answers = far.rest()
    refused = answers[-1]
    assert isinstance(refused, Refused)
    assert (refused.reason, refused.id) == ("protocol", None)
    assert match in refused.text
    code, said = far.end()
    assert code == 1
    assert match in said
    assert said.count("\n") == 1
    assert "Traceback" not in said


@pytest.mark.parametrize(
    "chunk",
    [
        Chunk.of(1, 3, b"x"),
        Chunk.of(1, 2, b"x"),
        Chunk.of(1, 0, b"x"),
        Chunk.of(1, (1 << 32) - 1, b"x"),
        Chunk.of(1, 2, bytes(11)),
    ],
    ids=["beyond the end", "short tail", "short", "far beyond", "long tail"],
)
def test_a_chunk_that_does_not_fit_its_file_ends_the_connection(
    far: Receiving, landing: Path, chunk: Chunk
) -> None:
    far.send(offer(DATA), chunk)
    gives_up(far, "bytes")
    assert all((landing / name).stat().st_size <= len(DATA) for name in partials(landing))


def test_a_number_that_stands_for_another_file_already_ends_the_connection(
    far: Receiving,
) -> None:
    far.send(offer(DATA), offer(DATA, name="decam_00941420_26.packet"))
    gives_up(far, "as another one")


def test_a_message_that_only_the_far_end_may_say_ends_the_connection(far: Receiving) -> None:
    far.send(Pong(1))
    gives_up(far, "Pong is not for the far end")


def test_whoever_does_not_begin_with_hello_is_not_served(landing: Path) -> None:
    with Receiving(landing, hello=None) as far:
        far.send(offer(DATA))
        gives_up(far, "not with Hello")


def test_a_frame_that_announces_2_gib_ends_the_connection_and_takes_no_memory(
    far: Receiving,
) -> None:
    from test_protocol import header

    most = psutil.Process(far.process.pid).memory_info().vms + (1 << 30)
    resource.prlimit(far.process.pid, resource.RLIMIT_AS, (most, most))
    far.write(header(Chunk.KIND, 1 << 31) + bytes(1000))
    gives_up(far, "2147483648 bytes")


def test_an_offer_of_more_than_4_gib_ends_the_connection(far: Receiving, landing: Path) -> None:
    big = json.dumps({"id": 1, "name": NAME, "size": 1 << 40, "checksum": "0" * 32}).encode()
    from test_protocol import framed

    far.write(framed(Offer.KIND, big))
    gives_up(far, "size makes no sense")
    assert names(landing) == []


def test_random_bytes_end_the_connection_with_one_sentence(far: Receiving) -> None:
    far.write(random.Random(1).randbytes(5000))
    gives_up(far, "no frame")


class InProcess:
    """A far end in this process, for as many tries as a fuzzer wants."""

    def __init__(self, landing: Path, said: bytes) -> None:
        source, near_out = os.pipe()
        near_in, sink = os.pipe()
        self._writer = threading.Thread(target=self._feed, args=(near_out, said))
        self._writer.start()
        self._heard = b""
        reader = threading.Thread(target=self._hear, args=(near_in,))
        reader.start()
        self.code = FarEnd(landing, source, sink).run()
        os.close(source)
        os.close(sink)
        self._writer.join(PATIENCE_S)
        reader.join(PATIENCE_S)
        assert not self._writer.is_alive()
        assert not reader.is_alive()
        self.answers = list(Frames(greeting=True).feed(self._heard))

    @staticmethod
    def _feed(descriptor: int, said: bytes) -> None:
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(said)
        except BrokenPipeError:
            pass

    def _hear(self, descriptor: int) -> None:
        with os.fdopen(descriptor, "rb") as stream:
            self._heard = stream.read()


SOUND = [
    Hello(1),
    offer(DATA),
    *chunks(DATA),
    Ping(1),
    ListFiles(),
    offer(b"x", 2, "../../x"),
    *chunks(b"x", 2),
]


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    messages=st.lists(st.sampled_from(SOUND), max_size=6),
    noise=st.binary(max_size=200),
    flips=st.lists(st.integers(0, 10_000), max_size=2),
    cut=st.integers(0, 300),
)
def test_whatever_comes_it_ends_with_0_or_1_and_writes_below_the_landing_directory(
    tmp_path_factory: pytest.TempPathFactory,
    messages: list[Hello],
    noise: bytes,
    flips: list[int],
    cut: int,
) -> None:
    outer = tmp_path_factory.mktemp("fuzz")
    landing = outer / "a" / "landing"
    landing.mkdir(parents=True)
    said = bytearray(b"".join(map(frame, [Hello(1), *messages])) + noise)
    for flip in flips:
        said[flip % len(said)] ^= 0x55
    del said[len(said) - min(cut, len(said)) :]
    far = InProcess(landing, bytes(said))
    assert far.code in (0, 1)
    if far.code == 1:
        assert any(isinstance(answer, Refused) for answer in far.answers)
    assert names(outer) == ["a"]
    assert names(outer / "a") == ["landing"]
    for name in names(landing):
        # a flipped bit may make another packet's name of it
        parse_name(name.removeprefix(".").partition(".packet")[0] + ".packet")
        if not name.startswith("."):
            assert (landing / name).read_bytes() == DATA


def test_it_ends_when_the_near_end_hangs_up(far: Receiving) -> None:
    far.hang_up()
    assert far.end() == (0, "")


def test_what_was_sent_before_the_near_end_hung_up_is_committed(
    far: Receiving, landing: Path
) -> None:
    far.send(offer(DATA), *chunks(DATA))
    far.hang_up()
    assert far.rest()[-1] == Committed(1)
    assert far.end() == (0, "")
    assert names(landing) == [NAME]


def test_it_ends_when_nobody_reads_its_answers(far: Receiving) -> None:
    assert far.process.stdout is not None
    far.process.stdout.close()
    far.send(Ping(1))
    assert far.end() == (0, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_it_ends_at_a_signal_without_a_traceback(far: Receiving, number: signal.Signals) -> None:
    far.process.send_signal(number)
    code, said = far.end()
    assert code == 128 + number
    assert said.count("\n") == 1
    assert "goodbye" in said


def test_it_ends_after_a_silence(landing: Path) -> None:
    with Receiving(landing, "--idle", "0.3") as far:
        code, said = far.end()
    assert code == 1
    assert "nothing came for 0.3 s" in said
    assert said.count("\n") == 1


def test_it_ends_after_a_silence_before_the_first_word(landing: Path) -> None:
    with Receiving(landing, "--idle", "0.3", hello=None) as far:
        assert far.end()[0] == 1


def test_whatever_comes_puts_off_the_end_by_silence(landing: Path) -> None:
    source, near = os.pipe()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    heard: list[int] = []

    def alive() -> None:
        heard.append(len(heard))
        if len(heard) < 5:
            os.write(near, frame(Ping(1)))
        else:
            os.close(near)

    os.write(near, frame(Hello(1)))
    assert FarEnd(landing, source, nowhere, alive).run() == 0
    assert heard == [0, 1, 2, 3, 4]
    os.close(source)
    os.close(nowhere)


def test_it_ends_after_a_silence_though_it_cannot_get_rid_of_its_answers(landing: Path) -> None:
    with Receiving(landing, "--idle", "2") as far:
        assert far.process.stdin is not None
        os.set_blocking(far.process.stdin.fileno(), False)
        ping = frame(Ping(1)) * 1000
        until = time.monotonic() + PATIENCE_S
        while far.process.poll() is None and time.monotonic() < until:
            try:
                os.write(far.process.stdin.fileno(), ping)
            except BlockingIOError:
                time.sleep(0.05)
            except BrokenPipeError:
                break
        assert far.process.wait(PATIENCE_S) == 1


def test_no_process_is_left_behind(landing: Path) -> None:
    with Receiving(landing) as far:
        far.send(offer(DATA), *chunks(DATA), ListFiles())
        far.until(Inventory)
        process = psutil.Process(far.process.pid)
        assert process.children(recursive=True) == []
        far.hang_up()
        far.end()
        assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_a_stray_print_does_not_break_the_stream(landing: Path) -> None:
    code = (
        "import prepipe.link.far_end as far, os, subprocess, sys\n"
        "take = far.FarEnd._take_offer\n"
        "def noisy(self, offer):\n"
        "    print('hello from a library', flush=True)\n"
        "    os.write(1, b'hello from C')\n"
        "    subprocess.run(['echo', 'hello from a child'])\n"
        "    take(self, offer)\n"
        "far.FarEnd._take_offer = noisy\n"
        f"from pathlib import Path; sys.exit(far.serve(Path({str(landing)!r}), 60))\n"
    )
    said = b"".join(map(frame, [Hello(1), offer(DATA), *chunks(DATA)]))
    ran = subprocess.run([sys.executable, "-c", code], input=said, capture_output=True, check=True)
    answers = list(Frames(greeting=True).feed(ran.stdout))
    assert answers[-1] == Committed(1)
    assert ran.stderr.count(b"hello from") == 3


def test_at_a_terminal_it_says_what_it_is_for(landing: Path) -> None:
    controller, terminal = pty.openpty()
    try:
        ran = subprocess.run(
            [*COMMAND, "--landing", str(landing)],
            stdin=terminal,
            capture_output=True,
            check=False,
            text=True,
        )
    finally:
        os.close(controller)
        os.close(terminal)
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert "over ssh" in ran.stderr
    assert "--check" in ran.stderr
    assert ran.stderr.count("\n") == 1


def test_with_its_stdin_closed_it_says_so(landing: Path) -> None:
    line = f'exec "$0" "$@" --landing "{landing}" <&-'
    ran = subprocess.run(["sh", "-c", line, *COMMAND], capture_output=True, check=False, text=True)
    assert ran.returncode == 2
    assert "stdin and stdout" in ran.stderr


def refused(far: Receiving, reason: str, *told: str) -> None:
    """A file is refused in one sentence."""
    far.send(offer(DATA), *chunks(DATA))
    answer = far.until(Refused)
    assert isinstance(answer, Refused)
    assert (answer.reason, answer.id) == (reason, 1)
    for words in told:
        assert words in answer.text
    far.send(Ping(9))
    far.until(Pong)


def test_a_missing_landing_directory_is_told_and_not_made(tmp_path: Path) -> None:
    with Receiving(tmp_path / "landing") as far:
        refused(far, "storage", str(tmp_path / "landing"), "does not exist")
        assert names(tmp_path) == []


def test_a_landing_directory_that_appears_is_used(tmp_path: Path) -> None:
    landing = tmp_path / "landing"
    with Receiving(landing) as far:
        refused(far, "storage", "does not exist")
        landing.mkdir()
        lands(far, landing)


def test_a_landing_directory_that_vanishes_under_way_is_told(
    far: Receiving, landing: Path, tmp_path: Path
) -> None:
    far.send(offer(DATA), chunks(DATA)[0])
    far.answers(2)
    landing.rename(tmp_path / "elsewhere")
    far.send(offer(DATA, 2, "decam_00941420_26.packet"))
    answer = far.answer()
    assert isinstance(answer, Refused)
    assert answer.reason == "storage"


def test_a_landing_directory_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "landing").write_text("a file")
    with Receiving(tmp_path / "landing") as far:
        refused(far, "storage", "a file stands where a directory belongs")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=True)
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.usefixtures("root")
def test_a_full_disk_is_told_and_once_there_is_space_the_file_goes_on(small_disk: Path) -> None:
    (small_disk / "filler").write_bytes(bytes(600_000))
    with Receiving(small_disk) as far:
        refused(far, "full", str(small_disk), "No space left", "free some space")
        (small_disk / "filler").unlink()
        far.send(offer(DATA))
        has = far.answer()
        assert isinstance(has, Has)
        assert has.bits != b"\0"
        far.send(*chunks(DATA))
        assert far.until(Committed) == Committed(1)
    assert names(small_disk) == [NAME]


@pytest.mark.usefixtures("root")
def test_a_file_that_is_there_is_acknowledged_on_a_full_disk(small_disk: Path) -> None:
    (small_disk / NAME).write_bytes(DATA)
    with Receiving(small_disk) as far:
        far.send(offer(DATA))
        assert far.answer() == Committed(1, already=True)


@pytest.mark.usefixtures("root")
def test_a_read_only_disk_is_told(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with Receiving(small_disk) as far:
        refused(far, "storage", str(small_disk), "mounted read-only")


def test_a_directory_that_may_not_be_written_is_told(landing: Path) -> None:
    landing.chmod(0o555)
    with Receiving(landing, prefix=as_a_plain_user()) as far:
        refused(far, "storage", str(landing), "permission")


def test_a_limit_of_the_size_of_files_is_told(far: Receiving, landing: Path) -> None:
    resource.prlimit(far.process.pid, resource.RLIMIT_FSIZE, (CHUNK_BYTES + 5, CHUNK_BYTES + 5))
    refused(far, "full", "ulimit -f")
    assert len(partials(landing)) == 2


def test_files_that_were_refused_count_as_under_way_no_longer(tmp_path: Path) -> None:
    landing = tmp_path / "landing"
    with Receiving(landing) as far:
        for number in range(KNOWN_OFFERS):
            far.send(offer(DATA, number))
            assert isinstance(far.answer(), Refused)
        landing.mkdir()
        lands(far, landing, KNOWN_OFFERS + 1)
        far.send(offer(DATA, 5))
        assert far.answer() == Has(5, b"\0")


def test_too_many_files_under_way_are_refused_until_some_are_done(
    far: Receiving, landing: Path
) -> None:
    data = b"a small packet"
    for number in range(KNOWN_OFFERS):
        far.send(offer(data, number, f"decam_{number:08d}_01.packet"))
        assert far.answer() == Has(number, b"\0")
    last = offer(data, KNOWN_OFFERS, f"decam_{KNOWN_OFFERS:08d}_01.packet")
    far.send(last)
    answer = far.answer()
    assert isinstance(answer, Refused)
    assert (answer.reason, answer.id) == ("protocol", KNOWN_OFFERS)
    with Receiving(landing) as other:
        other.send(offer(data, 0, "decam_00000000_01.packet"), *chunks(data, 0))
        other.until(Committed)
    far.send(last)
    assert far.answer() == Has(KNOWN_OFFERS, b"\0")


def test_what_others_committed_is_forgotten_a_few_at_a_time(
    landing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is looked up on a disk that may be slow, while chunks wait."""
    far = FarEnd(landing, *os.pipe())
    looked_up: list[Offer] = []
    open_partial = Landing.open

    def note(self: Landing, each: Offer, *, create: bool) -> Partial:
        looked_up.append(each)
        return open_partial(self, each, create=create)

    monkeypatch.setattr(Landing, "open", note)
    for number in range(KNOWN_OFFERS + 1):
        assert far._remember(offer(DATA, number))
    assert 0 < len(looked_up) <= 100


def test_the_answer_to_a_late_chunk_may_be_forgotten_while_it_is_looked_up(landing: Path) -> None:
    """Another thread forgets the oldest; whoever looks twice finds it once."""

    class Forgetful(OrderedDict[int, object]):
        def __contains__(self, key: object) -> bool:
            found = super().__contains__(key)
            self.pop(key, None)
            return found

    far = FarEnd(landing, *os.pipe())
    far._over = Forgetful({1: (0, Committed(1))})
    assert far._answer_too_late(chunks(DATA)[0]) == Committed(1)


def test_chunks_are_acknowledged_while_another_file_waits_to_be_committed(
    far: Receiving, landing: Path
) -> None:
    with Landing(landing).open(offer(DATA), create=True) as held, held.locked():
        far.send(offer(DATA), *chunks(DATA))
        second = offer(DATA, 2, "decam_00941420_26.packet")
        far.send(second, *chunks(DATA, 2)[:2])
        heard = [answer for answer in far.answers(4) if getattr(answer, "id", 0) == 2]
        assert heard == [Has(2, b"\0"), Acknowledged(2, 0), Acknowledged(2, 1)]
    assert far.until(Committed) == Committed(1)


def test_the_inventory_tells_names_bytes_and_checksums_but_not_of_rejected_archived_or_hidden_ones(
    far: Receiving, landing: Path
) -> None:
    for name in (
        NAME,
        "done/ut200306/decam_00000002_01.packet",
        "archive/decam_00000003_01.packet",
        "rejected/decam_00000004_01.packet",
        ".decam_00000005_01.packet.0123456789abcdef.part",
        ".hidden/decam_00000006_01.packet",
        "notes.txt",
    ):
        (landing / name).parent.mkdir(parents=True, exist_ok=True)
        (landing / name).write_bytes(DATA)
    far.send(ListFiles())
    page = far.answer()
    assert isinstance(page, Inventory)
    assert page.last
    told = [len(DATA), offer(DATA).checksum]
    assert sorted(page.files) == [
        ["decam_00000002_01.packet", *told],
        [NAME, *told],
    ]


@pytest.mark.parametrize(("count", "pages"), [(0, [0]), (500, [500, 0]), (1001, [500, 500, 1])])
def test_a_long_inventory_comes_in_pages(
    far: Receiving, landing: Path, count: int, pages: list[int]
) -> None:
    for number in range(count):
        (landing / f"decam_{number:08d}_01.packet").write_bytes(b"x")
    far.send(ListFiles())
    told = [far.answer()]
    while isinstance(told[-1], Inventory) and not told[-1].last:
        told.append(far.answer())
    assert [len(page.files) for page in told if isinstance(page, Inventory)] == pages


def test_the_inventory_from_an_exposure_on_leaves_out_those_before(
    far: Receiving, landing: Path
) -> None:
    for number in (8, 9, 100_000_000):
        (landing / f"decam_{number:08d}_01.packet").write_bytes(b"x")
    far.send(ListFiles(since=9))
    page = far.answer()
    assert isinstance(page, Inventory)
    assert {name for name, _, _ in page.files} == {
        "decam_00000009_01.packet",
        "decam_100000000_01.packet",
    }


def test_the_inventory_of_a_missing_landing_directory_is_empty(tmp_path: Path) -> None:
    with Receiving(tmp_path / "landing") as far:
        far.send(ListFiles())
        assert far.answer() == Inventory([], last=True)


def test_the_inventory_removes_what_a_kill_left_beside_a_committed_file_and_nothing_else(
    far: Receiving, landing: Path
) -> None:
    """Who hears there that a file has arrived never offers it again."""
    (landing / NAME).write_bytes(DATA)
    checksum, other = offer(DATA).checksum[:16], offer(DATA[1:]).checksum[:16]
    (landing / f".{NAME}.{checksum}.marks.part").write_bytes(b"marks")
    (landing / f".{NAME}.{other}.part").write_bytes(b"of another content")
    far.send(ListFiles())
    assert far.answer() == Inventory([[NAME, len(DATA), offer(DATA).checksum]], last=True)
    assert names(landing) == [f".{NAME}.{other}.part", NAME]


def test_its_memory_is_bounded_however_fast_it_is_fed(far: Receiving, landing: Path) -> None:
    data = content(64 * CHUNK_BYTES)
    process = psutil.Process(far.process.pid)
    highest = 0
    for number in range(8):
        far.send(offer(data, number, f"decam_{number:08d}_01.packet"), *chunks(data, number))
        far.until(Committed)
        highest = max(highest, process.memory_info().rss)
    assert highest < 150e6

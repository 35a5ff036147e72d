"""A site's own commands as a codec: run by words, bounded in time, and not believed."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from codec_frames import Frame, simulated_frame
from test_wavelet import packet_of

from prepipe.codec import get_codec
from prepipe.codec.external import ENVIRONMENT, Commands
from prepipe.codec.pack import pack_ccd
from prepipe.codec.packet import decode, write_packet
from prepipe.errors import ConfigError, PacketError, PixelError
from prepipe.model import Ccd, Exposure

CODEC = get_codec("external")
FRAME = simulated_frame(64, 90)
COPY = ("cp", "{input}", "{output}")


def python(program: str) -> tuple[str, ...]:
    """A command that runs `program` with the files as its arguments."""
    return sys.executable, "-c", program, "{input}", "{output}"


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """Commands are kept in the environment: whatever a test puts there goes with it."""
    before = os.environ.pop(ENVIRONMENT, None)
    yield
    os.environ.pop(ENVIRONMENT, None)
    if before is not None:
        os.environ[ENVIRONMENT] = before


@pytest.mark.parametrize("dtype", ["uint16", "int16", "uint8", "int32"])
def test_pixels_reach_the_command_and_come_back_from_it(dtype: str) -> None:
    Commands(COPY, COPY).use()
    pixels = (FRAME % 200).astype(dtype)
    payload = CODEC.encode(pixels, {}).payload
    np.testing.assert_array_equal(CODEC.decode(payload, packet_of(pixels)), pixels)


def test_a_packet_made_by_programs_of_others_says_what_it_cost(
    funpack_program: str,
    write_raw: Callable[..., Path],
    frame: Frame,
    exposure: Exposure,
    tmp_path: Path,
) -> None:
    fpack = str(Path(funpack_program).with_name("fpack"))
    encode = fpack, "-h", "-s", "3", "-O", "{output}", "{input}"
    Commands(encode, (funpack_program, "-O", "{output}", "{input}"), ".fz").use()
    packed = pack_ccd(write_raw(frame), 1, exposure, Ccd(25, "S1"), "external")
    opened = decode(write_packet(tmp_path, packed))
    told = opened.packet.parameters
    assert told["by"] == "fpack"
    assert told["ratio"] > 2
    assert 0 < told["rms_error_adu"] < 12
    assert np.abs(opened.pixels.astype(int) - frame).max() == told["max_error_adu"]


def test_a_command_that_fails_is_named_with_its_last_word() -> None:
    Commands(python("import sys; print('no licence', file=sys.stderr); sys.exit(3)"), COPY).use()
    with pytest.raises(PixelError, match=r"failed with status 3 \(no licence\)"):
        CODEC.encode(FRAME, {})


def test_a_command_that_hangs_is_killed_with_all_it_started(tmp_path: Path) -> None:
    child = "import subprocess, sys; subprocess.run(['sleep', '60'])"
    Commands(python(child), COPY, timeout_s=0.5).use()
    began = time.monotonic()
    with pytest.raises(PixelError, match=r"took more than 0\.5 s and was killed"):
        CODEC.encode(FRAME, {})
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    "program",
    ["pass", "import sys; open(sys.argv[2], 'w')", "import os, sys; os.mkdir(sys.argv[2])"],
)
def test_a_command_that_writes_nothing_is_found_out(program: str) -> None:
    Commands(python(program), COPY).use()
    with pytest.raises(PixelError, match="wrote no file"):
        CODEC.encode(FRAME, {})


@pytest.mark.parametrize("payload", [b"not FITS", b"SIMPLE  =" + bytes(4000)])
def test_what_unpacks_to_no_image_is_refused(payload: bytes) -> None:
    Commands(COPY, COPY).use()
    with pytest.raises(PacketError, match="unpacked to no image"):
        CODEC.decode(payload, packet_of(FRAME))


def test_what_unpacks_to_another_image_is_refused() -> None:
    Commands(COPY, COPY).use()
    payload = CODEC.encode(FRAME, {}).payload
    with pytest.raises(PacketError, match="no image of its shape"):
        CODEC.decode(payload, packet_of(FRAME.T))
    with pytest.raises(PacketError, match="unpacked to uint16, not to int16"):
        CODEC.decode(payload, packet_of(FRAME.astype(np.int16)))


def test_a_program_that_is_not_there_is_a_matter_of_settings() -> None:
    Commands(("/nowhere/f2j", "{input}", "{output}"), COPY).use()
    with pytest.raises(ConfigError, match="/nowhere/f2j cannot be run"):
        CODEC.encode(FRAME, {})


def test_without_commands_nothing_is_run() -> None:
    with pytest.raises(ConfigError, match=r"set pack\.external\.encode"):
        CODEC.encode(FRAME, {})
    with pytest.raises(ConfigError, match=r"pack\.external\.decode"):
        CODEC.decode(b"x", packet_of(FRAME))


def test_words_are_not_read_by_a_shell(tmp_path: Path) -> None:
    Commands(("cp", "{input}", "{output}", "; touch", str(tmp_path / "made")), COPY).use()
    with pytest.raises(PixelError, match="failed"):
        CODEC.encode(FRAME, {})
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "wrong", [{"encode": ("f2j", "{input}")}, {"decode": ("j2f",)}, {"suffix": "/../x"}]
)
def test_commands_that_name_no_files_are_refused(wrong: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(ConfigError, match=r"pack\.external"):
        Commands(**{"encode": COPY, "decode": COPY, **wrong})

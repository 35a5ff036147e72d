"""Codec ``external``: a site's own commands, such as f2j and j2f.

The command that packs is given a FITS image, the one that unpacks must give one back. They
are lists of words from the settings of the site that runs them, never from a packet, and no
shell sees them. This process's environment holds them, so that workers inherit them.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from prepipe.codec.base import Encoded, Pixels, Unit
from prepipe.codec.fits_bytes import FitsFile
from prepipe.codec.pixels import MAX_PIXELS, require_image
from prepipe.codec.plain_image import plain_file
from prepipe.codec.tiles import decode_unit
from prepipe.errors import ConfigError, InputError, PacketError, PixelError, StorageError
from prepipe.files import storage_errors
from prepipe.model import Packet

__all__ = ["ENVIRONMENT", "Commands", "ExternalCodec"]

ENVIRONMENT = "PREPIPE_EXTERNAL_CODEC"

_KINDS = "uint8 int16 uint16 int32"
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,10}")
_MOST_BYTES = 9 * MAX_PIXELS
_TOLD_CHARACTERS = 200


@dataclass(frozen=True)
class Commands:
    """The commands of a site.

    Parameters
    ----------
    encode, decode : sequence of str
        Words; ``{input}`` and ``{output}`` in them become the files to read and to write.
    suffix : str
        What the name of a packed file ends with.
    timeout_s : float
        A command that takes longer is killed.
    """

    encode: Sequence[str]
    decode: Sequence[str]
    suffix: str = ".jp2"
    timeout_s: float = 120.0

    def __post_init__(self) -> None:
        for name, words in (("encode", self.encode), ("decode", self.decode)):
            together = " ".join(words)
            if words and not ("{input}" in together and "{output}" in together):
                raise ConfigError(f"pack.external.{name} must name {{input}} and {{output}}")
        if _SUFFIX.fullmatch(self.suffix) is None:
            raise ConfigError(f"pack.external.suffix is {self.suffix!r}; it must look like .jp2")

    def use(self) -> None:
        """Let this process and its children use these commands."""
        os.environ[ENVIRONMENT] = json.dumps(asdict(self))

    @classmethod
    def in_use(cls) -> Commands:
        """The commands in use here; empty ones if there are none.

        Raises
        ------
        ConfigError
            If the environment holds something else.
        """
        text = os.environ.get(ENVIRONMENT, "")
        if not text:
            return cls((), ())
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{ENVIRONMENT} holds no commands ({error}); unset it") from error


class ExternalCodec:
    """Whatever the site's commands do; the loss is measured, as with every codec."""

    name = "external"
    lossless = False

    def encode(
        self, pixels: Pixels, parameters: Mapping[str, object], unit: Unit | None = None
    ) -> Encoded:
        """Write `pixels` as a FITS image and let the command pack it.

        Raises
        ------
        ConfigError
            If a parameter is given, there is no command, or it cannot be run.
        PixelError
            If the command fails, or takes too long.
        """
        if parameters:
            raise ConfigError(f"codec external takes no parameters, not {sorted(parameters)}")
        plain = require_image(pixels, _KINDS, self.name)
        commands = Commands.in_use()
        try:
            payload = _run(commands.encode, commands, plain_file(plain), ".fits", commands.suffix)
        except _CommandError as error:
            raise PixelError(f"codec external: {error}") from error
        return Encoded(payload, {"by": Path(commands.encode[0]).name})

    def decode(self, payload: bytes, packet: Packet, header: bytes = b"") -> Pixels:
        """Let the command unpack `payload` and read the FITS image it writes.

        Raises
        ------
        ConfigError
            If there is no command, or it cannot be run.
        PacketError
            If the command fails, or gives another image.
        """
        commands = Commands.in_use()
        try:
            content = _run(commands.decode, commands, payload, commands.suffix, ".fits")
        except _CommandError as error:
            raise PacketError(f"{packet.file_name}: {error}") from error
        return _image_in(content, packet)


class _CommandError(InputError):
    """A command did not do what it should."""


def _run(
    words: Sequence[str], commands: Commands, content: bytes, before: str, after: str
) -> bytes:
    """Give a command a file with `content`, and take what it writes."""
    if not words:
        raise ConfigError(
            "codec external has no command here: set pack.external.encode and pack.external.decode"
        )
    with storage_errors(Path(tempfile.gettempdir())), tempfile.TemporaryDirectory() as directory:
        source, target = (
            Path(directory) / f"{name}{suffix}"
            for name, suffix in (("input", before), ("output", after))
        )
        source.write_bytes(content)
        _wait(_filled(words, source, target), directory, commands.timeout_s)
        if target.is_symlink() or not target.is_file() or not target.stat().st_size:
            raise _CommandError(f"{words[0]} wrote no file {{output}}")
        if target.stat().st_size > _MOST_BYTES:
            raise _CommandError(f"{words[0]} wrote a file that is too big for a packet")
        return target.read_bytes()


def _filled(words: Sequence[str], source: Path, target: Path) -> list[str]:
    return [word.replace("{input}", str(source)).replace("{output}", str(target)) for word in words]


def _wait(words: Sequence[str], directory: str, timeout_s: float) -> None:
    """Run a command to its end; what it started ends with it."""
    try:
        process = subprocess.Popen(
            words,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"pack.external: {words[0]} cannot be run ({error})") from error
    try:
        _, told = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise _CommandError(f"{words[0]} took more than {timeout_s:g} s and was killed") from None
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.returncode:
        last = told.decode(errors="replace").strip().splitlines()[-1:] or [""]
        reason = f" ({last[0][:_TOLD_CHARACTERS]})" if last[0] else ""
        raise _CommandError(f"{words[0]} failed with status {process.returncode}{reason}")


def _image_in(content: bytes, packet: Packet) -> Pixels:
    """The first image of a FITS file, if it is one of the packet's shape and type."""
    with tempfile.NamedTemporaryFile(suffix=".fits") as file:
        file.write(content)
        file.flush()
        try:
            with FitsFile(Path(file.name)) as fits:
                spans = [span for span in fits.spans if len(span.image_shape) == 2]
                units = [Unit(span.header, fits.data_unit(span)) for span in spans[:1]]
            pixels = decode_unit(units[0]) if units else None
        except (InputError, StorageError) as error:
            reason = str(error).replace(file.name, "its file")
            raise PacketError(f"{packet.file_name}: unpacked to no image ({reason})") from error
    if pixels is None or pixels.shape != packet.shape:
        raise PacketError(f"{packet.file_name}: unpacked to no image of its shape {packet.shape}")
    limits = np.iinfo(packet.dtype)
    if pixels.dtype.kind not in "iu" or not (
        limits.min <= int(pixels.min()) and int(pixels.max()) <= limits.max
    ):
        raise PacketError(
            f"{packet.file_name}: unpacked to {pixels.dtype.name}, not to {packet.dtype}"
        )
    return pixels.astype(packet.dtype)

"""The JSON header of a packet, checked when written and when read."""

from __future__ import annotations

from datetime import UTC, date, datetime
from math import isfinite
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from prepipe.codec.pixels import MAX_PIXELS
from prepipe.errors import PacketError
from prepipe.model import Ccd, Exposure, Kind, Night, Packet
from prepipe.names import CAMERA_PATTERN

__all__ = ["PacketHead"]

_Text = Annotated[str, Field(max_length=200)]
_Checksum = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
_Dtype = Literal[
    "uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "float32", "float64"
]


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class _Exposure(_Model):
    camera: Annotated[str, Field(pattern=rf"^{CAMERA_PATTERN}$")]
    number: Annotated[int, Field(ge=0, lt=10**12)]
    kind: Kind
    field: _Text
    band: _Text
    start: datetime
    exposure_s: float
    night: date


class _Ccd(_Model):
    number: Annotated[int, Field(ge=0, lt=10**4)]
    name: _Text


class PacketHead(_Model):
    """What the JSON header holds.

    Attributes
    ----------
    exposure, ccd, codec, parameters, shape, dtype, payload_checksum, pixel_checksum
        As in `prepipe.model.Packet`.
    hdu : int
        Number of the HDU in the file it came from.
    primary_bytes : int
        Length of the primary header unit, which comes first in the block of cards; 0 if
        the image is itself the primary HDU.
    """

    exposure: _Exposure
    ccd: _Ccd
    codec: Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,20}$")]
    parameters: dict[str, JsonValue]
    shape: Annotated[list[Annotated[int, Field(gt=0)]], Field(min_length=2, max_length=2)]
    dtype: _Dtype
    payload_checksum: _Checksum
    pixel_checksum: _Checksum
    hdu: Annotated[int, Field(ge=0)]
    primary_bytes: Annotated[int, Field(ge=0, multiple_of=2880)]

    @model_validator(mode="after")
    def _sound(self) -> PacketHead:
        if self.shape[0] * self.shape[1] > MAX_PIXELS:
            raise ValueError(f"{self.shape} is no size of a CCD")
        # pydantic lets NaN and 1e999 pass where any JSON value may stand
        if not _finite(self.parameters):
            raise ValueError("parameters hold a number that is not finite")
        return self

    @classmethod
    def of(cls, packet: Packet, hdu: int, primary_bytes: int) -> PacketHead:
        """Header of `packet`.

        Raises
        ------
        PacketError
            If something in it cannot be written: a camera's name that is no file name, a
            number that is not finite.
        """
        exposure = packet.exposure
        start = exposure.start
        values = {
            "exposure": {
                "camera": exposure.camera,
                "number": exposure.number,
                "kind": exposure.kind,
                "field": exposure.field,
                "band": exposure.band,
                "start": start.replace(tzinfo=UTC) if start.tzinfo is None else start,
                "exposure_s": exposure.exposure_s,
                "night": exposure.night.date,
            },
            "ccd": {"number": packet.ccd.number, "name": packet.ccd.name},
            "codec": packet.codec,
            "parameters": packet.parameters,
            "shape": list(packet.shape),
            "dtype": packet.dtype,
            "payload_checksum": packet.payload_checksum,
            "pixel_checksum": packet.pixel_checksum,
            "hdu": hdu,
            "primary_bytes": primary_bytes,
        }
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise PacketError(f"{packet.file_name} cannot be written: {_first(error)}") from error

    @classmethod
    def from_json(cls, text: bytes) -> PacketHead:
        """Read the header of a packet.

        Raises
        ------
        PacketError
            If it is no such header.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise PacketError(f"the packet's header makes no sense: {_first(error)}") from error

    def to_json(self) -> bytes:
        """The header as UTF-8."""
        return self.model_dump_json().encode()

    def packet(self, payload_bytes: int) -> Packet:
        """The packet that this header speaks of."""
        told = self.exposure
        return Packet(
            exposure=Exposure(
                camera=told.camera,
                number=told.number,
                kind=told.kind,
                field=told.field,
                band=told.band,
                start=told.start.astimezone(UTC) if told.start.tzinfo else told.start,
                exposure_s=told.exposure_s,
                night=Night(told.night),
            ),
            ccd=Ccd(self.ccd.number, self.ccd.name),
            codec=self.codec,
            parameters=dict(self.parameters),
            shape=(self.shape[0], self.shape[1]),
            dtype=self.dtype,
            payload_bytes=payload_bytes,
            payload_checksum=self.payload_checksum,
            pixel_checksum=self.pixel_checksum,
        )


def _finite(value: JsonValue) -> bool:
    """Whether all numbers in a JSON value are finite."""
    if isinstance(value, dict):
        return all(_finite(item) for item in value.values())
    if isinstance(value, list):
        return all(_finite(item) for item in value)
    return not isinstance(value, float) or isfinite(value)


def _first(error: ValidationError) -> str:
    """The first complaint, as one phrase."""
    complaint = error.errors()[0]
    place = ".".join(str(part) for part in complaint["loc"]) or "it"
    return f"{place}: {complaint['msg']}"

"""Every codec: what it gives back, what it loses, what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from math import e, log2, pi, sqrt
from pathlib import Path

import fitsio
import numpy as np
import pytest
from codec_frames import SKY_NOISE_ADU, Frame, simulated_frame
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from prepipe.codec import Unit, codec_names, get_codec
from prepipe.codec.cards import join_cards
from prepipe.codec.fits_bytes import FitsFile, scan_fits
from prepipe.codec.headers import with_cards
from prepipe.codec.jpeg2000 import rms_of_quantiser_step
from prepipe.codec.pack import pack_ccd
from prepipe.codec.packet import decode, write_packet
from prepipe.codec.pixels import fidelity, sky_noise
from prepipe.codec.tiles import decode_unit
from prepipe.errors import ConfigError, FitsError, PacketError, PixelError
from prepipe.model import Ccd, Exposure, Kind, Night, Packet

START = datetime(2020, 3, 6, tzinfo=UTC)
ANY_EXPOSURE = Exposure("decam", 1, Kind.OBJECT, "", "g", START, 20.0, Night.of(START))
INTEGERS = ("uint8", "int8", "int16", "uint16", "int32", "uint32")


def packet_of(pixels: NDArray[np.generic], codec: str) -> Packet:
    shape = (pixels.shape[0], pixels.shape[1])
    return Packet(ANY_EXPOSURE, Ccd(1, "S29"), codec, {}, shape, pixels.dtype.name, 0, "", "")


def round_trip(
    pixels: NDArray[np.generic], codec: str, **parameters: object
) -> tuple[NDArray[np.generic], int]:
    """Decoded pixels and length of the payload."""
    chosen = get_codec(codec)
    payload = chosen.encode(pixels, parameters).payload
    return chosen.decode(payload, packet_of(pixels, codec)), len(payload)


def images(dtypes: tuple[str, ...]) -> st.SearchStrategy[NDArray[np.generic]]:
    shapes = arrays.array_shapes(min_dims=2, max_dims=2, max_side=40)
    return st.sampled_from(dtypes).flatmap(lambda dtype: arrays.arrays(dtype, shapes))


def test_the_codecs_of_the_house_are_known_by_name() -> None:
    assert {"jpeg2000", "none", "rice", "wavelet"} <= set(codec_names())
    with pytest.raises(ConfigError, match="jpeg2000, none, rice, wavelet"):
        get_codec("zip")


@settings(max_examples=200, deadline=None)
@given(images(INTEGERS))
def test_rice_gives_back_every_image_of_integers(pixels: NDArray[np.generic]) -> None:
    decoded, _ = round_trip(pixels, "rice")
    assert decoded.dtype == pixels.dtype
    np.testing.assert_array_equal(decoded, pixels)


def test_rice_comes_near_the_entropy_of_the_noise() -> None:
    # Gaussian noise of sigma has log2(sigma sqrt(2 pi e)) bits a pixel; Rice coding of it
    # is known to need at most 25 % more, and nothing lossless can need less
    noise = np.random.default_rng(3).normal(2000, SKY_NOISE_ADU, (256, 300))
    pixels = np.rint(noise).astype(np.uint16)
    _, length = round_trip(pixels, "rice")
    bits = 8 * length / pixels.size
    entropy = log2(SKY_NOISE_ADU * sqrt(2 * pi * e))
    assert entropy < bits < 1.25 * entropy


@pytest.mark.parametrize("codec", ["rice", "jpeg2000", "wavelet"])
def test_big_endian_pixels_are_packed_as_what_they_are(codec: str, frame: Frame) -> None:
    from_little, _ = round_trip(frame, codec)
    from_big, _ = round_trip(frame.astype(">u2"), codec)
    np.testing.assert_array_equal(from_big, from_little)


@pytest.mark.parametrize("codec", ["rice", "jpeg2000", "wavelet"])
def test_a_view_with_gaps_is_packed_as_what_it_is(codec: str, frame: Frame) -> None:
    view = frame[::2, ::-3]
    decoded, _ = round_trip(view, codec)
    copied, _ = round_trip(view.copy(), codec)
    np.testing.assert_array_equal(decoded, copied)


@settings(max_examples=60, deadline=None)
@given(images(("uint16", "int16")), st.sampled_from(["ratio", "qstep", "rms_sigma"]))
def test_jpeg2000_takes_any_shape_and_decodes_twice_the_same(
    pixels: NDArray[np.generic], target: str
) -> None:
    value = {"ratio": 5.0, "qstep": 5.5e-5, "rms_sigma": 0.5}[target]
    first, _ = round_trip(pixels, "jpeg2000", **{target: value})
    second, _ = round_trip(pixels, "jpeg2000", **{target: value})
    assert first.shape == pixels.shape
    assert first.dtype == pixels.dtype
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("dtype", ["uint16", "int16"])
@pytest.mark.parametrize("level", ["lowest", "highest"])
def test_pixels_at_the_end_of_the_range_do_not_wrap(dtype: str, level: str) -> None:
    # a pixel that wraps is wrong by 65536; the noise around is 12 ADU
    limits = np.iinfo(dtype)
    end = limits.min if level == "lowest" else limits.max
    rng = np.random.default_rng(4)
    towards = 1 if level == "lowest" else -1
    pixels = np.rint(end + towards * np.abs(rng.normal(0, 12, (128, 128)))).astype(dtype)
    pixels[30:60, 30:60] = end
    decoded, _ = round_trip(pixels, "jpeg2000", ratio=10.0)
    assert fidelity(pixels, decoded)["max_error_adu"] < 200


@pytest.mark.parametrize("value", [0, 1000, 65535])
def test_a_constant_frame_comes_back_within_a_few_adu(value: int) -> None:
    pixels = np.full((128, 200), value, np.uint16)
    for parameters in ({"ratio": 10.0}, {"qstep": 5.5e-5}, {"rms_sigma": 0.3}):
        decoded, _ = round_trip(pixels, "jpeg2000", **parameters)
        assert np.abs(decoded.astype(int) - value).max() <= 8


@pytest.mark.parametrize("ratio", [4.0, 10.0, 20.0])
def test_the_asked_ratio_is_reached_within_five_percent(frame: Frame, ratio: float) -> None:
    _, length = round_trip(frame, "jpeg2000", ratio=ratio)
    assert frame.nbytes / length == pytest.approx(ratio, rel=0.05)


@pytest.mark.parametrize("sigmas", [0.15, 0.3, 0.5])
def test_the_asked_loss_is_reached_in_units_of_the_noise(frame: Frame, sigmas: float) -> None:
    decoded, _ = round_trip(frame, "jpeg2000", rms_sigma=sigmas)
    assert fidelity(frame, decoded)["rms_error_sigma"] == pytest.approx(sigmas, rel=0.1)


def test_the_legacy_step_loses_what_a_dead_zone_quantiser_loses() -> None:
    # measured with an encoder that takes the step itself: 1.62 ADU rms at 5.25 ADU of noise
    step = 5.5e-5 * 65536
    assert rms_of_quantiser_step(step, 5.25) == pytest.approx(1.62, rel=0.02)
    # fine steps lose step / sqrt(12), coarse ones all of the noise
    assert rms_of_quantiser_step(0.01, 5.25) == pytest.approx(0.01 / sqrt(12), rel=0.01)
    assert rms_of_quantiser_step(100.0, 5.25) == pytest.approx(5.25, rel=0.01)


def test_the_legacy_step_sets_the_loss_of_the_frame() -> None:
    frame = simulated_frame(256, 300, noise=5.25)
    decoded, _ = round_trip(frame, "jpeg2000", qstep=5.5e-5)
    assert fidelity(frame, decoded)["rms_error_adu"] == pytest.approx(1.62, rel=0.1)


def test_the_overscan_survives_lossy_packing(frame: Frame) -> None:
    # the mean of 256 x 20 pixels with an error of 0.3 sigma each, if independent, moves by
    # 0.3 * 12 / sqrt(5120) = 0.05 ADU; wavelet errors are correlated over up to 32 pixels
    decoded, _ = round_trip(frame, "jpeg2000", rms_sigma=0.3)
    shift = decoded[:, :20].mean() - frame[:, :20].mean()
    assert abs(shift) < 0.3 * SKY_NOISE_ADU / sqrt(frame[:, :20].size) * 16


@pytest.mark.parametrize("noise", [2.0, 5.25, 12.0, 150.0])
def test_the_noise_of_a_frame_is_measured_within_its_error(noise: float) -> None:
    # a MAD of n differences is good to 1.17 / sqrt(n) (neighbours share a pixel: twice
    # that), here below 1 %; rounding to integers adds 1/12 ADU^2
    frame = simulated_frame(256, 300, noise=noise)[:, 20:]
    assert sky_noise(frame) == pytest.approx(sqrt(noise**2 + 1 / 12), rel=0.04)


def test_a_constant_frame_has_no_noise() -> None:
    assert sky_noise(np.full((50, 50), 65535, np.uint16)) == 0.0
    assert sky_noise(np.zeros((50, 1), np.uint16)) == 0.0


def test_the_order_of_magnitude_of_the_noise_of_floats_is_not_lost_to_nan() -> None:
    pixels = np.random.default_rng(5).normal(0, 0.01, (200, 200)).astype(np.float32)
    pixels[:10] = np.nan
    assert sky_noise(pixels) == pytest.approx(0.01, rel=0.03)


@pytest.mark.parametrize(
    ("codec", "parameters"),
    [
        ("rice", {"level": 3}),
        ("jpeg2000", {"quality": 3}),
        ("jpeg2000", {"ratio": 10.0, "qstep": 1e-4}),
        ("jpeg2000", {"ratio": 0.5}),
        ("jpeg2000", {"ratio": float("nan")}),
        ("jpeg2000", {"qstep": -1.0}),
        ("jpeg2000", {"qstep": "fine"}),
        ("jpeg2000", {"rms_sigma": True}),
        ("wavelet", {"quality": 3}),
        ("wavelet", {"preset": "best"}),
        ("wavelet", {"preset": 3}),
        ("wavelet", {"preset": []}),
        ("wavelet", {"seeing_px": 0.0}),
        ("wavelet", {"seeing_px": "good"}),
        ("wavelet", {"ratio": 0.5}),
        ("wavelet", {"ratio": float("nan")}),
        ("wavelet", {"fill": 1}),
    ],
)
def test_senseless_parameters_are_refused(
    codec: str, parameters: dict[str, object], frame: Frame
) -> None:
    with pytest.raises(ConfigError, match=codec):
        get_codec(codec).encode(frame, parameters)


@pytest.mark.parametrize("codec", ["rice", "jpeg2000", "wavelet"])
@pytest.mark.parametrize(
    "pixels",
    [np.zeros((4, 4), np.float32), np.zeros((2, 3, 4), np.uint16), np.zeros((0, 5), np.uint16)],
)
def test_pixels_that_a_codec_cannot_pack_are_refused(
    codec: str, pixels: NDArray[np.generic]
) -> None:
    with pytest.raises(PixelError, match=codec):
        get_codec(codec).encode(pixels, {})


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["rice", "jpeg2000", "wavelet"]), st.binary(max_size=300))
def test_a_payload_of_anything_is_refused_or_decoded_to_the_stated_shape(
    codec: str, payload: bytes
) -> None:
    pixels = np.zeros((6, 9), np.uint16)
    try:
        decoded = get_codec(codec).decode(payload, packet_of(pixels, codec))
    except PacketError:
        return
    assert decoded.shape == pixels.shape


def test_a_codestream_that_states_a_huge_size_takes_no_memory(frame: Frame) -> None:
    codec = get_codec("jpeg2000")
    payload = bytearray(codec.encode(frame, {}).payload)
    payload[8:16] = b"\x00\x0f\xff\xff" * 2
    with pytest.raises(PacketError, match="no JPEG 2000 frame of its shape"):
        codec.decode(bytes(payload), packet_of(frame, "jpeg2000"))


@pytest.mark.parametrize(
    ("keyword", "value"), [("ZTILE1", 2_000_000_000), ("PCOUNT", 10**12), ("ZTILE2", -1)]
)
def test_a_table_that_states_a_huge_size_takes_no_memory(
    keyword: str, value: int, frame: Frame, tmp_path: Path
) -> None:
    path = tmp_path / "gzip.fits.fz"
    with fitsio.FITS(str(path), "rw") as file:
        file.write(frame, compress="GZIP_1")
    with FitsFile(path) as file:
        span = file.spans[1]
        unit = Unit(span.header, file.data_unit(span))
    np.testing.assert_array_equal(decode_unit(unit), frame)
    lie = join_cards(with_cards(list(span.cards), {keyword: value}, after=keyword))
    with pytest.raises(FitsError, match="contradicts its header"):
        decode_unit(Unit(lie, unit.data))


@pytest.mark.parametrize("dtype", [*INTEGERS, "float32", "float64"])
def test_none_carries_every_type_of_pixel(
    dtype: str, write_raw: Callable[..., Path], exposure: Exposure, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(6).normal(50, 10, (30, 40)).astype(dtype)
    packed = pack_ccd(write_raw(pixels), 1, exposure, Ccd(25, "S1"), "none")
    decoded = decode(write_packet(tmp_path, packed)).pixels
    assert decoded.dtype == pixels.dtype
    np.testing.assert_array_equal(decoded, pixels)


def test_a_broken_tile_is_found_when_packing(
    shared_data: Path, tmp_path: Path, exposure: Exposure
) -> None:
    source = shared_data / "decam_raw" / "history_reduced_c4d_200306_000415_ori.fits.fz"
    content = bytearray(source.read_bytes())
    span = scan_fits(source)[1]
    content[span.data_offset : span.data_offset + 4] = b"\x7f\xff\xff\xff"
    path = tmp_path / "broken.fits.fz"
    path.write_bytes(content)
    with pytest.raises(FitsError, match=r"broken\.fits\.fz: HDU 1: .*outside its table"):
        pack_ccd(path, 1, exposure, Ccd(25, "S1"), "none")


@pytest.mark.parametrize(
    ("codec", "parameters", "smallest_ratio"),
    [
        ("none", {}, 0.99),
        ("rice", {}, 2.3),
        ("jpeg2000", {"rms_sigma": 0.3}, 6.0),
        ("wavelet", {}, 15.0),
    ],
)
def test_a_full_detector_of_decam_is_packed_and_opened(
    codec: str,
    parameters: dict[str, object],
    smallest_ratio: float,
    write_raw: Callable[..., Path],
    exposure: Exposure,
    tmp_path: Path,
) -> None:
    frame = simulated_frame(4146, 2160)
    packed = pack_ccd(write_raw(frame), 1, exposure, Ccd(25, "S1"), codec, parameters)
    opened = decode(write_packet(tmp_path, packed))
    told = opened.packet.parameters
    assert told["ratio"] > smallest_ratio
    if get_codec(codec).lossless:
        np.testing.assert_array_equal(opened.pixels, frame)
    elif codec == "wavelet":
        assert told["rms_error_sigma"] < 1
    else:
        assert told["rms_error_sigma"] == pytest.approx(0.3, rel=0.1)

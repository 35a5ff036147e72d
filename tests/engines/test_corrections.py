"""Crosstalk, non-linearity and bad pixels of a simulated camera are taken away by its tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from numpy.typing import NDArray
from simulated_night import Night, order_of

from prepipe.calibrate.detector.crosstalk import typical_noise
from prepipe.calibrate.detector.detrend import detrend
from prepipe.calibrate.flags import Mask
from prepipe.cameras import load_camera
from prepipe.codec.pack import pack_ccd
from prepipe.codec.packet import write_packet
from prepipe.config import Calibration
from prepipe.engines.builtin.reduce import carry_out
from prepipe.engines.detector.corrections import Corrections, check_tables, find_corrections
from prepipe.engines.raw import RawCcd, list_ccds, read_ccd
from prepipe.errors import ConfigError
from prepipe.model import Colour, Layout
from prepipe.simulate import Settings, simulate_exposure

CAMERA = load_camera("decam")
SHARE = 8e-4
BEND = 4e-7


def read(path: Path, ccd: int) -> tuple[RawCcd, Layout, int]:
    hdu = {found.number: hdu for hdu, found in list_ccds(path, CAMERA)}[ccd]
    raw = read_ccd(path, hdu, CAMERA)
    return raw, CAMERA.layout(raw.header, raw.pixels), hdu


def detrended(path: Path, settings: Calibration) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    raw, layout, hdu = read(path, 28)
    known = find_corrections(raw, layout, CAMERA, settings, path, hdu)
    assert known.flags == ()
    frame = detrend(raw.pixels, layout, crosstalk=known.crosstalk, linearity=known.linearity)
    return frame.image, frame.mask


@pytest.fixture(scope="module")
def skies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same exposure of a perfect camera, of one with crosstalk, of one that is not linear."""
    root = tmp_path_factory.mktemp("skies")
    plain = Settings(seed=5, ccds=(28,))
    flaws = {"perfect": {}, "haunted": {"crosstalk": SHARE}, "bent": {"nonlinearity": BEND}}
    return {
        name: simulate_exposure(replace(plain, **flaw), 0, root / name)
        for name, flaw in flaws.items()
    }


def test_the_ghosts_of_bright_stars_are_gone(skies: dict[str, Path], tmp_path: Path) -> None:
    _, layout, _ = read(skies["haunted"], 28)
    gain = {a.name: a.gain for a in layout.amplifiers}
    table = tmp_path / "xtalk.csv"
    # The simulated share is one of electrons.
    rows = [f"28{v},28{s},{SHARE * gain[s] / gain[v]}" for v, s in ("AB", "BA")]
    table.write_text("victim,source,coefficient\n" + "\n".join(rows))
    perfect, mask = detrended(skies["perfect"], Calibration())
    haunted, _ = detrended(skies["haunted"], Calibration())
    corrected, _ = detrended(skies["haunted"], Calibration(crosstalk=table))
    # The noise is drawn alike in both; where the source is saturated its light is not known.
    bright = (perfect[:, ::-1] > 30000) & (mask[:, ::-1] == 0) & (mask == 0)
    assert bright.sum() > 200
    ghosts = (haunted - perfect)[bright]
    left = (corrected - perfect)[bright]
    assert ghosts.mean() > 24.0
    # Rounding to whole ADU in each frame, 4/sqrt(12) e-; shot noise of what the ghost adds, its
    # own draw being scaled: sqrt(sky + ghost) - sqrt(sky) < 2 e-; and that of the source, 1 %.
    assert abs(left.mean()) < 5 * 3.0 / np.sqrt(bright.sum())
    assert np.abs(left).max() < 6 * 3.0


def test_counts_are_made_proportional_to_the_light(skies: dict[str, Path], tmp_path: Path) -> None:
    linear = np.linspace(0, 65000, 400)
    rows = [f"28,{a},{x * (1 - BEND * x)},{x}" for a in "AB" for x in linear]
    table = tmp_path / "linearity.csv"
    table.write_text("ccd,amplifier,adu,linear_adu\n" + "\n".join(rows))
    perfect, mask = detrended(skies["perfect"], Calibration())
    bent, bent_mask = detrended(skies["bent"], Calibration())
    corrected, _ = detrended(skies["bent"], Calibration(linearity=table))
    bright = (perfect > 80000) & (mask == 0) & (bent_mask == 0)
    assert bright.sum() > 50
    # 20 000 ADU lose 0.8 %, of which rounding and the read noise's own bend leave 1e-4.
    assert (bent / perfect)[bright].mean() < 0.995
    assert np.abs(corrected / perfect - 1.0)[bright].max() < 4e-4


BETWEEN = "victim,source,coefficient\n28A,35A,1e-3\n28B,35A,-1e-3\n"


def between(night: Night, raw: RawCcd, layout: Layout, table: Path, *place: object) -> Corrections:
    settings = Calibration(crosstalk=table, crosstalk_between=True)
    return find_corrections(raw, layout, CAMERA, settings, *place)


def expected_ghost(night: Night, raw: RawCcd, layout: Layout) -> NDArray[np.float64]:
    """ADU that CCD 35's amplifier A leaves in 28's A: columns by their side, rows turned."""
    other, of_other, _ = read(night.raw, 35)
    a = next(x for x in of_other.amplifiers if x.name == "A")
    victim = next(x for x in layout.amplifiers if x.name == "A")
    level = np.median(other.pixels[a.overscan.slices], axis=1)
    signal = other.pixels[a.data.slices] - level[:, None]
    # 28 lies in the south, 35 in the north.
    assert (victim.read_order, a.read_order) == ((-1, -1), (1, 1))
    return 1e-3 * signal[::-1, ::-1]


def test_the_ghosts_of_another_ccd_are_found_in_file_and_packets(
    night: Night, tmp_path: Path
) -> None:
    table = tmp_path / "xtalk.csv"
    table.write_text(BETWEEN)
    raw, layout, hdu = read(night.raw, 28)
    found = between(night, raw, layout, table, night.raw, hdu)
    assert (found.flags, found.ghost_ccds) == ((), 1)
    ghosts = found.ghosts
    rows = np.repeat(np.arange(layout.trimmed_shape[0]), np.diff(ghosts.starts))
    victim = next(x for x in layout.amplifiers if x.name == "A")
    box = victim.trimmed
    inside = (ghosts.columns >= box.x0) & (ghosts.columns < box.x1)
    truth = expected_ghost(night, raw, layout)[
        rows[inside] - box.y0, ghosts.columns[inside] - box.x0
    ]
    assert inside.sum() > 1000
    # Of the overscan's median, 0.5 ADU, and its smoothing a thousandth comes over.
    assert np.abs(ghosts.adu[inside] - truth).max() < 5e-3
    assert ghosts.adu[inside].min() >= 0.05 * typical_noise(raw.pixels, victim) - 5e-3

    for other in (28, 35):
        of_it, _, its_hdu = read(night.raw, other)
        write_packet(tmp_path, pack_ccd(night.raw, its_hdu, of_it.exposure, of_it.ccd, "none"))
    packet = next(tmp_path.glob("*_28.packet"))
    packed = read_ccd(packet, None, CAMERA)
    again = between(night, packed, layout, table, packet, None)
    assert (again.flags, again.ghost_ccds) == ((), 1)
    for one, two in zip(again.ghosts, ghosts, strict=True):
        np.testing.assert_array_equal(one, two)

    next(tmp_path.glob("*_35.packet")).unlink()
    alone = between(night, packed, layout, table, packet, None)
    assert (alone.flags, alone.ghost_ccds) == (("CROSSTALK_PARTIAL",), 0)
    assert alone.ghosts.adu.size == 0


def test_a_damaged_packet_of_another_ccd_is_as_good_as_none(night: Night, tmp_path: Path) -> None:
    table = tmp_path / "xtalk.csv"
    table.write_text(BETWEEN)
    of_it, layout, hdu = read(night.raw, 28)
    packet = write_packet(tmp_path, pack_ccd(night.raw, hdu, of_it.exposure, of_it.ccd, "none"))
    packet.with_name(packet.name.replace("_28", "_35")).write_bytes(b"no packet")
    found = between(night, read_ccd(packet, None, CAMERA), layout, table, packet, None)
    assert found.flags == ("CROSSTALK_PARTIAL",)


def test_what_was_corrected_stands_in_mask_header_and_grade(night: Night, tmp_path: Path) -> None:
    (tmp_path / "xtalk.csv").write_text("victim,source,coefficient\n28A,28B,1e-4\n28A,27A,1e-4\n")
    identity = "ccd,amplifier,adu,linear_adu\n28,A,0,0\n28,B,0,0\n"
    (tmp_path / "linear.csv").write_text(identity)
    maps = tmp_path / "maps"
    maps.mkdir()
    (maps / "ccd28_20190101.csv").write_text("x0,y0,width,height\n100,200,3,2\n")
    settings = Calibration(
        reference=night.reference,
        crosstalk=tmp_path / "xtalk.csv",
        crosstalk_between=True,
        linearity=tmp_path / "linear.csv",
        bad_pixels=maps,
    )
    _, _, hdu = read(night.raw, 28)
    order = order_of(
        night.root, night.raw, hdu, calibration=settings, products=tmp_path / "products"
    )
    outcome = carry_out(order)
    assert outcome.reduction.flags == ("CROSSTALK_PARTIAL",)
    assert outcome.grade.colour is Colour.YELLOW
    assert "crosstalk" in outcome.grade.reasons[0]
    with fits.open(outcome.reduction.product) as hdus:
        cards = hdus["IMAGE"].header
        assert (cards["XTALKFIL"], cards["LINFILE"]) == ("xtalk.csv", "linear.csv")
        assert (cards["BPMFILE"], cards["XTALKNUM"]) == ("ccd28_20190101.csv", 0)
        mask = hdus["MASK"].data
        assert (mask[200:202, 100:103] & Mask.BAD).all()
        assert not (mask[199, 95:110] & Mask.BAD).any()


def test_tables_that_have_nothing_of_the_ccd_are_flagged(night: Night, tmp_path: Path) -> None:
    (tmp_path / "linear.csv").write_text("ccd,amplifier,adu,linear_adu\n1,A,0,0\n")
    (tmp_path / "all.csv").write_text("ccd,x0,y0,width,height\n1,0,0,1,1\n")
    settings = Calibration(linearity=tmp_path / "linear.csv", bad_pixels=tmp_path / "all.csv")
    raw, layout, hdu = read(night.raw, 28)
    found = find_corrections(raw, layout, CAMERA, settings, night.raw, hdu)
    assert found == Corrections(flags=("NO_LINEARITY", "NO_BAD_PIXELS"))


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("crosstalk", "victim,source,coefficient\n28A,28C,1e-4\n", "has no amplifier C"),
        ("linearity", "ccd,amplifier,adu,linear_adu\n28,C,0,0\n", "has no amplifier C"),
        ("linearity", "ccd,amplifier,adu,linear_adu\n28,A,0,0\n", "without its amplifier B"),
    ],
)
def test_a_table_of_other_amplifiers_is_refused(
    night: Night, tmp_path: Path, name: str, text: str, why: str
) -> None:
    path = tmp_path / "table.csv"
    path.write_text(text)
    raw, layout, hdu = read(night.raw, 28)
    with pytest.raises(ConfigError, match=why):
        find_corrections(raw, layout, CAMERA, Calibration(**{name: path}), night.raw, hdu)


def test_crosstalk_between_ccds_without_a_table_is_wrong_use() -> None:
    with pytest.raises(ConfigError, match=r"set calibration\.crosstalk"):
        check_tables(Calibration(crosstalk_between=True))


def test_a_real_cut_out_without_its_other_amplifier_says_so(shared_data: Path) -> None:
    path = shared_data / "decam_raw/history_reduced_c4d_200306_000415_ori.fits.fz"
    raw, layout, hdu = read(path, 25)
    settings = Calibration(crosstalk=shared_data / "constants/decam/DECam_xtalk_20130606.txt")
    found = find_corrections(raw, layout, CAMERA, settings, path, hdu)
    assert found.flags == ("CROSSTALK_PARTIAL",)

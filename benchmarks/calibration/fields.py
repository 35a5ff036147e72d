"""Simulated exposures of one DECam CCD, of which everything is known.

They are composed of the same pieces as `prepipe.simulate.simulate_ccd`, so that the light, the
cosmic rays and the response can be kept as the truth.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.wcs import WCS
from numpy.typing import NDArray

from prepipe.cameras import load_camera
from prepipe.engines.detector.masters import gather, make_master
from prepipe.model import Kind
from prepipe.simulate import Settings, simulate_exposure
from prepipe.simulate.detector import bias_of, read_out, respond, saturate
from prepipe.simulate.focal_plane import HALF_WIDTH, Detector, chosen_detectors
from prepipe.simulate.headers import checksum_comments, extension_cards, primary_header
from prepipe.simulate.light import PointSources, add_cosmic_rays, add_sources
from prepipe.simulate.observation import Observation, plan
from prepipe.simulate.projection import VisibleSky, header_wcs
from prepipe.simulate.rawfile import compressed_image
from prepipe.simulate.settings import BANDS, PIXEL_SCALE_ARCSEC
from prepipe.simulate.stars import StarField
from prepipe.simulate.telescope import LAMP_GRADIENT

CCD = 28
RADIUS_DEG = 0.35
TRACKS = 100
"""Cosmic rays of the simulator's own charge, and as many with a fifth of it."""

Image = NDArray[np.float32]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SkyKind:
    """A kind of sky; `crowding` and `galaxies_per_deg2` as in `StarField.generate`."""

    crowding: float
    galaxies_per_deg2: float
    seeing_arcsec: float


KINDS = {
    "sparse": SkyKind(0.56, 160_000.0, 1.0),
    "medium": SkyKind(2.7, 280_000.0, 0.9),
    "dense": SkyKind(22.0, 420_000.0, 1.1),
}
"""200, 965 and 8000 stars of the reference catalogue on the CCD."""


@dataclass(frozen=True)
class Truth:
    """What shines on the CCD, one element a source; pixels of the trimmed CCD from zero."""

    x: Floats
    y: Floats
    flux_e: Floats
    mag: Floats
    fwhm_px: Floats
    is_star: NDArray[np.bool_]


@dataclass(frozen=True)
class Field:
    """A raw file, its catalogue, and all that is true of it."""

    name: str
    raw: Path
    reference: Path
    observation: Observation
    detector: Detector
    stars: StarField
    truth: Truth
    charge: Image
    """e- expected in each pixel, without cosmic rays, before full pixels bleed."""
    bled: NDArray[np.bool_]
    """Pixels that bleeding or the full well changed."""
    cosmic: Image
    """e- of cosmic rays."""

    @property
    def seeing_px(self) -> float:
        """FWHM at the centre of the CCD."""
        return float(
            self.observation.seeing_px(np.hypot(*_from_axis(self.detector, *_centre())))[0]
        )

    @property
    def dark_variance(self) -> Image:
        """Read noise and digitisation, e-^2, shape (columns,)."""
        channels = self.detector.channels
        each = [channel.read_noise**2 + channel.gain**2 / 12.0 for channel in channels]
        return np.repeat(each, HALF_WIDTH).astype(np.float32)

    def grid(self, columns: int = 21, rows: int = 41) -> tuple[Floats, Floats, Floats, Floats]:
        """Pixels and true sky positions (deg) of a grid over the CCD: x, y, ra, dec."""
        x, y = np.meshgrid(
            np.linspace(10, 2 * HALF_WIDTH - 11, columns),
            np.linspace(10, self.detector.data_rows - 11, rows),
        )
        ra, dec = self.header_wcs.wcs_pix2world(x.ravel(), y.ravel(), 0)
        # The header's own positions are a few arcsec off the true ones, so that these places
        # of the sky lie on the CCD all the same; where, the simulator says.
        count = x.size
        zeros = np.zeros(count)
        places = StarField(
            np.arange(count), ra, dec, zeros, zeros, zeros, zeros, zeros, zeros, zeros > 0
        )
        index, true_x, true_y = VisibleSky(places, self.observation).on_detector(self.detector)
        return true_x, true_y, ra[index], dec[index]

    @property
    def header_wcs(self) -> WCS:
        """The (wrong) WCS of the header, for the trimmed CCD."""
        return header_wcs(self.detector, self.observation.ra, self.observation.dec)


def make_field(name: str, work: Path, seed: int = 1) -> Field:
    """Expose and write one field, and its reference catalogue."""
    kind = KINDS[name]
    number = 941500 + list(KINDS).index(name)
    settings = Settings(
        seed=seed, ccds=(CCD,), seeing_arcsec=kind.seeing_arcsec, first_exposure=number
    )
    observation = plan(settings, 0)
    detector = chosen_detectors((CCD,))[0]
    centre = header_wcs(detector, observation.ra, observation.dec).wcs_pix2world([_centre()], 0)[0]
    stars = StarField.generate(
        *(float(c) for c in centre), RADIUS_DEG, seed, kind.crowding, kind.galaxies_per_deg2
    )
    light = np.full((detector.data_rows, 2 * HALF_WIDTH), observation.sky_e, dtype=np.float32)
    truth = _add_stars(light, observation, detector, stars)
    respond(light, detector, settings.camera_seed)
    rng = np.random.Generator(np.random.SFC64([seed, 0xCCD, number, CCD]))
    cosmic = _cosmic_rays(light.shape, rng)
    bias = bias_of(detector, settings.camera_seed, rng)
    charge = light + cosmic
    before = charge.copy()
    saturate(charge, detector, bias)
    raw = work / "raw" / observation.file_name
    raw.parent.mkdir(parents=True, exist_ok=True)
    pixels = read_out(charge, detector, bias, rng)
    cards = extension_cards(detector, observation)
    raw.write_bytes(
        primary_header(observation, 1)
        + compressed_image(pixels, cards, checksum_comments(observation))
    )
    reference = work / f"{name}.fits"
    stars.write_reference(reference)
    changed = charge != before
    return Field(name, raw, reference, observation, detector, stars, truth, light, changed, cosmic)


def make_masters(work: Path, zeros: int, flats: int) -> Path:
    """Master bias and flat of the CCD, of so many frames; their directory."""
    camera = load_camera("decam")
    counts = {Kind.ZERO: zeros, Kind.DOME_FLAT: flats}
    frames = [
        simulate_exposure(Settings(ccds=(CCD,), kind=kind), index, work / "calibrations")
        for kind, count in counts.items()
        for index in range(count)
    ]
    for group in gather(frames, camera)[0]:
        make_master(group, work / "masters", camera)
    return work / "masters"


def lamp_level(field: Field) -> float:
    """The lamp of the dome alone in the middle of the CCD; a flat takes it for response."""
    x, y = field.detector.detsec
    rows, columns = field.charge.shape
    place = (y + rows / 2) / 29050.0 - 0.5 + (x + columns / 2) / 29400.0 - 0.5
    return 1.0 + LAMP_GRADIENT * place


def true_flat(field: Field) -> Image:
    """What the lamp of the dome would show without noise, relative to a typical pixel of all CCDs.

    Shape (rows, columns); the lamp's own gradient included.
    """
    rows, columns = field.charge.shape
    x, y = field.detector.detsec
    along = (y + np.arange(rows, dtype=np.float32)) / 29050.0 - 0.5
    across = (x + np.arange(columns, dtype=np.float32)) / 29400.0 - 0.5
    flat = (1.0 + LAMP_GRADIENT * (along[:, None] + across[None, :])).astype(np.float32)
    respond(flat, field.detector, Settings().camera_seed)
    return flat


def _centre() -> tuple[float, float]:
    return HALF_WIDTH - 0.5, 2047.5


def _from_axis(detector: Detector, x: float | Floats, y: float | Floats) -> tuple[Floats, Floats]:
    return (
        np.atleast_1d(x) + detector.data.x0 + 1 - detector.crpix[0],
        np.atleast_1d(y) + detector.data.y0 + 1 - detector.crpix[1],
    )


def _add_stars(
    light: Image, observation: Observation, detector: Detector, stars: StarField
) -> Truth:
    index, x, y = VisibleSky(stars, observation).on_detector(detector)
    shining = stars.chosen(index)
    mag = shining.magnitudes(BANDS[observation.band].colour_terms)
    flux = 10 ** (0.4 * (observation.zero_point - mag)) * observation.exposure_s
    away = _from_axis(detector, x, y)
    seeing = observation.seeing_px(np.hypot(*away))
    fwhm = np.hypot(seeing, shining.size_arcsec / PIXEL_SCALE_ARCSEC)
    add_sources(light, PointSources(x, y, flux, fwhm, *observation.shape_at(*away)))
    inside = (np.abs(x - light.shape[1] / 2) < light.shape[1] / 2) & (
        np.abs(y - light.shape[0] / 2) < light.shape[0] / 2
    )
    columns = (x, y, flux, mag, fwhm, shining.size_arcsec == 0.0)
    return Truth(*(column[inside] for column in columns))


def _cosmic_rays(shape: tuple[int, ...], rng: np.random.Generator) -> Image:
    faint, bright = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    add_cosmic_rays(faint, TRACKS, rng)
    add_cosmic_rays(bright, TRACKS, rng)
    total: Image = bright + np.float32(0.2) * faint
    return total

"""The seeing that an engine begins with is that of shortly before."""

from __future__ import annotations

from concurrent.futures import Future
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cluster_packets import exposure, make_packet

from prepipe.cluster.dispatch import Dispatcher
from prepipe.cluster.seeing import NEWEST, recent_seeing
from prepipe.compute import LocalCompute
from prepipe.config import Cluster, Site
from prepipe.engines.base import Engine, Order
from prepipe.model import Ccd, Colour, Exposure, Grade, Kind, Night, Reduction, Stage
from prepipe.store import CcdKey, Journal

DUSK = datetime(2020, 3, 6, 1, tzinfo=UTC)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal.sqlite")


def taken(number: int, band: str = "g", kind: Kind = Kind.OBJECT, night: int = 0) -> Exposure:
    start = DUSK + timedelta(days=night, minutes=number)
    return Exposure("decam", number, kind, "Antlia", band, start, 20.0, Night.of(start))


def calibrate(journal: Journal, of: Exposure, *seeing: float | None) -> None:
    ccds = [Ccd(number, f"N{number}") for number in range(1, len(seeing) + 1)]
    journal.add_exposure(of, ccds, stage=Stage.LANDED)
    for ccd, value in zip(ccds, seeing, strict=True):
        reduction = Reduction(of.number, ccd.number, seeing_arcsec=value)
        key = CcdKey("decam", of.number, ccd.number)
        journal.calibrated(key, reduction, Grade(Colour.GREEN), 1.0)


def test_the_first_exposure_of_a_night_has_none(journal: Journal) -> None:
    calibrate(journal, taken(10, night=-1), 0.9)

    assert recent_seeing(journal, taken(11)) is None


def test_it_is_the_median_of_the_ccds_of_the_same_band(journal: Journal) -> None:
    calibrate(journal, taken(10), 0.9, 1.0, 5.0)
    calibrate(journal, taken(11, band="r"), 0.7)
    calibrate(journal, taken(12, kind=Kind.OTHER), 3.0)

    assert recent_seeing(journal, taken(13)) == 1.0


def test_the_newest_exposures_count(journal: Journal) -> None:
    calibrate(journal, taken(10), *[0.6] * 20)
    calibrate(journal, taken(11), *[1.2] * 20)

    assert recent_seeing(journal, taken(12)) == 1.2


def test_ccds_whose_seeing_could_not_be_measured_are_passed_over(journal: Journal) -> None:
    calibrate(journal, taken(10), 0.8)
    calibrate(journal, taken(11), None, None)

    assert recent_seeing(journal, taken(12)) == 0.8


def test_a_night_that_is_reduced_once_more_has_its_own(journal: Journal) -> None:
    calibrate(journal, taken(10), 0.8)
    calibrate(journal, taken(11, night=1), *[1.4] * NEWEST)

    assert recent_seeing(journal, taken(12)) == 0.8


class Catcher(LocalCompute):
    """Keeps the orders that it is given."""

    def __init__(self) -> None:
        super().__init__(1)
        self.orders: list[Order] = []

    def submit(self, work: object, order: Order, urgency: float = 0.0) -> Future[object]:
        self.orders.append(order)
        return Future()


@pytest.mark.parametrize(("wants", "told"), [(True, 0.8), (False, None)])
def test_only_an_engine_that_wants_it_is_told(
    journal: Journal, tmp_path: Path, wants: bool, told: float | None
) -> None:
    calibrate(journal, exposure(1), 0.8)
    packet = make_packet(tmp_path / "landing", 2, 5)
    journal.add_exposure(
        exposure(2), [Ccd(5, "N5")], stage=Stage.LANDED, facts={"packet": str(packet)}
    )
    directories = {name: tmp_path / name for name in ("products", "calibrations", "work")}
    site = Site(cluster=Cluster(**directories))
    engine = Engine("own", lambda _: None, wants_seeing=wants)

    with closing(Catcher()) as compute:
        list(Dispatcher(site, journal, compute, engine).serve())

    assert [order.seeing_arcsec for order in compute.orders] == [told]

"""How exposures crossed, as the journal accounts for it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from prepipe.model import Ccd, Exposure, Kind, Night, Stage
from prepipe.store import CcdKey, Journal, TransferRow
from prepipe.store.transfers import night_traffic

EVENING = datetime(2020, 3, 6, 0, 4, 15, tzinfo=UTC)
CCDS = [Ccd(25, "S1"), Ccd(32, "N1")]
NIGHT = Night(date(2020, 3, 5))


def exposure(number: int = 941420) -> Exposure:
    return Exposure("decam", number, Kind.OBJECT, "field", "g", EVENING, 20.0, Night.of(EVENING))


@pytest.fixture
def journal(where: Path | str) -> Iterator[Journal]:
    opened = Journal(where)
    yield opened
    opened.close()


def send(journal: Journal, key: CcdKey, at: float, took: float, size: int = 1_000_000) -> None:
    journal.advance(key, Stage.PACKED, packet_bytes=size)
    journal.advance(key, Stage.SENT, took, sent_at=at)


def test_an_account_spans_from_the_first_byte_to_the_last_acknowledgement(
    journal: Journal,
) -> None:
    first, second = journal.add_exposure(exposure(), CCDS)
    send(journal, first, at=1000.0, took=2.0)
    send(journal, second, at=1006.0, took=5.0)
    account = journal.close_account("decam", 941420)
    assert account == TransferRow(NIGHT, "decam", 941420, 2, 2_000_000, 998.0, 8.0)
    assert account.mbit_s == pytest.approx(2.0)
    assert journal.transfers() == [account]


def test_there_is_no_account_while_something_waits(journal: Journal) -> None:
    first, _ = journal.add_exposure(exposure(), CCDS)
    send(journal, first, at=1000.0, took=2.0)
    assert journal.close_account("decam", 941420) is None
    assert journal.transfers() == []


def test_what_is_in_quarantine_is_not_waited_for(journal: Journal) -> None:
    first, second = journal.add_exposure(exposure(), CCDS)
    send(journal, first, at=1000.0, took=2.0)
    journal.fail(second, Stage.PACKED, "broken")
    account = journal.close_account("decam", 941420)
    assert account is not None
    assert account.ccds == 1


def test_nothing_is_accounted_for_twice(journal: Journal) -> None:
    for key in journal.add_exposure(exposure(), CCDS):
        send(journal, key, at=1000.123456, took=1.0 / 3.0)
    assert journal.close_account("decam", 941420) is not None
    assert journal.close_account("decam", 941420) is None


def test_a_ccd_sent_again_gets_an_account_of_its_own(journal: Journal) -> None:
    keys = journal.add_exposure(exposure(), CCDS)
    for key in keys:
        send(journal, key, at=1000.0, took=1.0)
    journal.close_account("decam", 941420)
    send(journal, keys[0], at=5000.0, took=2.0)
    account = journal.close_account("decam", 941420)
    assert account is not None
    assert (account.ccds, account.began, account.seconds) == (1, 4998.0, 2.0)


def test_what_the_far_side_had_already_did_not_cross(journal: Journal) -> None:
    first, second = journal.add_exposure(exposure(), CCDS)
    send(journal, first, at=1000.0, took=2.0)
    send(journal, second, at=1001.0, took=0.0)
    account = journal.close_account("decam", 941420)
    assert account is not None
    assert (account.ccds, account.bytes) == (1, 1_000_000)


def test_what_a_killed_push_did_not_write_down_is_made_up_for(journal: Journal) -> None:
    for number in (1, 2):
        for key in journal.add_exposure(exposure(number), CCDS):
            send(journal, key, at=1000.0 * number, took=1.0)
    journal.close_account("decam", 1)
    journal.close_accounts()
    journal.close_accounts()
    assert [account.exposure for account in journal.transfers()] == [1, 2]


def test_accounts_can_be_limited_to_an_exposure_or_a_night(journal: Journal) -> None:
    for key in journal.add_exposure(exposure(), CCDS):
        send(journal, key, at=time.time(), took=1.0)
    journal.close_accounts()
    assert len(journal.transfers(exposure=941420, night=NIGHT)) == 1
    assert journal.transfers(exposure=941421) == []
    assert journal.transfers(night=Night(date(2020, 3, 6))) == []


def test_a_nights_mean_counts_the_time_in_which_something_was_under_way_once() -> None:
    def account(number: int, began: float, seconds: float) -> TransferRow:
        return TransferRow(NIGHT, "decam", number, 1, 1_000_000, began, seconds)

    (night,) = night_traffic([account(1, 0.0, 4.0), account(2, 2.0, 4.0), account(3, 100.0, 2.0)])
    assert (night.exposures, night.ccds, night.bytes) == (3, 3, 3_000_000)
    assert night.seconds == pytest.approx(8.0)
    assert night.mbit_s == pytest.approx(3.0)


def test_nights_are_told_apart_the_newest_first() -> None:
    other = Night(date(2020, 3, 6))
    rows = [TransferRow(night, "decam", 1, 1, 1, 0.0, 1.0) for night in (NIGHT, other)]
    assert [night.night for night in night_traffic(rows)] == [other, NIGHT]

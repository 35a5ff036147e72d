"""The library of masters: nearest in time among the good and valid ones, whatever happens to it."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st
from library_writer import NIGHT, add, go_on, name_in

from prepipe.config import Calibration
from prepipe.engines.base import ChosenMasters
from prepipe.engines.detector.library import CHOICES, LibraryMaster, MasterLibrary
from prepipe.errors import ConfigError, StorageError
from prepipe.model import Exposure, Kind, Mark, Night
from prepipe.store import MasterRow


def night(days: int) -> Night:
    return Night(NIGHT.date + timedelta(days=days))


def exposure(days: int = 0, band: str = "r") -> Exposure:
    start = datetime(2020, 3, 6, 3, tzinfo=UTC) + timedelta(days=days)
    return Exposure("decam", 99, Kind.OBJECT, "field", band, start, 20.0, Night.of(start))


def change(root: Path, path: Path, **values: object) -> None:
    library = MasterLibrary(root)
    library.table.change([library.master(path).row], **values)


def biases(root: Path, day: int = 0, **settings: object) -> list[Path]:
    chosen = MasterLibrary(root).choose(exposure(day), 3, Calibration(**settings))
    assert chosen.flat == ()
    return list(chosen.bias)


def added(root: Path, *days: int) -> list[Path]:
    names = [name_in(root, night(day)) for day in days]
    for k, name in enumerate(names):
        add(root, name, 100 * k)
    return [name.path for name in names]


def test_the_nearest_comes_first_and_the_earlier_of_two_as_near(tmp_path: Path) -> None:
    after, before, far, _too_far = added(tmp_path, 1, -1, 3, -31)
    assert biases(tmp_path) == [before, after, far]


def test_of_one_night_the_last_series_comes_first(tmp_path: Path) -> None:
    names = [name_in(tmp_path, number=number) for number in (941201, 941300, 99999)]
    for k, name in enumerate(names):
        add(tmp_path, name, k)
    assert biases(tmp_path) == [names[1].path, names[0].path, names[2].path]


def test_flats_are_chosen_by_band_and_biases_whatever_the_band(tmp_path: Path) -> None:
    flats = [name_in(tmp_path, band=band) for band in ("g", "r")]
    bias = name_in(tmp_path)
    for k, name in enumerate([*flats, bias]):
        add(tmp_path, name, k)
    chosen = MasterLibrary(tmp_path).choose(exposure(band="r"), 3, Calibration())
    assert chosen == ChosenMasters((bias.path,), (flats[1].path,))
    assert MasterLibrary(tmp_path).choose(exposure(), 4, Calibration()) == ChosenMasters()


def test_what_is_marked_bad_is_never_chosen_until_it_is_marked_good(tmp_path: Path) -> None:
    near, far = added(tmp_path, 0, 2)
    change(tmp_path, near, mark=Mark.BAD, why="haze", by_hand=True)
    assert biases(tmp_path) == [far]
    change(tmp_path, near, mark=Mark.GOOD, why="was none", by_hand=True)
    assert biases(tmp_path) == [near, far]


@pytest.mark.parametrize(("day", "valid"), [(-3, False), (-2, True), (0, True), (1, True), (2, 0)])
def test_limits_in_time_include_their_nights(tmp_path: Path, day: int, valid: bool) -> None:
    (path,) = added(tmp_path, 0)
    change(tmp_path, path, valid_from=night(-2), valid_until=night(1))
    assert biases(tmp_path, day) == ([path] if valid else [])


def test_a_site_may_want_masters_of_the_night_alone(tmp_path: Path) -> None:
    own, _other = added(tmp_path, 0, 1)
    assert biases(tmp_path, masters="night") == [own]
    assert biases(tmp_path, days=0) == [own]
    assert biases(tmp_path, 5, masters="night") == []


def test_an_order_names_a_few_of_them(tmp_path: Path) -> None:
    paths = added(tmp_path, *range(CHOICES + 2))
    assert biases(tmp_path) == paths[:CHOICES]


def test_a_file_without_a_row_is_adopted_as_good(tmp_path: Path) -> None:
    (path,) = added(tmp_path, 0)
    MasterLibrary(tmp_path).table.path.unlink()
    assert biases(tmp_path) == [path]
    (master,) = MasterLibrary(tmp_path).masters()
    assert (master.recorded, master.frames, master.noise) == (False, 3, 1.0)
    change(tmp_path, path, mark=Mark.BAD, why="haze", by_hand=True)
    assert biases(tmp_path) == []


def test_a_library_that_was_moved_keeps_its_marks(tmp_path: Path) -> None:
    near, _ = added(tmp_path / "here", 0, 1)
    change(tmp_path / "here", near, mark=Mark.BAD, why="haze", by_hand=True)
    (tmp_path / "here").rename(tmp_path / "there")
    (left,) = biases(tmp_path / "there")
    assert left.parent.parent.name == night(1).ut_name


def test_a_row_without_its_file_is_ignored_and_told(tmp_path: Path) -> None:
    gone, other = added(tmp_path, 0, 1)
    gone.unlink()
    library = MasterLibrary(tmp_path)
    assert biases(tmp_path) == [other]
    assert [master.path for master in library.masters()] == [other]
    assert library.without_file() == [gone.relative_to(tmp_path).as_posix()]


def test_a_master_whose_header_cannot_be_read_is_passed_over(tmp_path: Path) -> None:
    near, far = added(tmp_path, 0, 1)
    near.write_bytes(near.read_bytes()[:3000])
    assert biases(tmp_path) == [far]
    assert [bool(master.shape) for master in MasterLibrary(tmp_path).masters()] == [False, True]


def test_what_is_no_master_of_the_library_is_refused_by_name(tmp_path: Path) -> None:
    (path,) = added(tmp_path / "one", 0)
    other = tmp_path / "notes.fits"
    other.touch()
    for library, wrong in ((tmp_path / "one", other), (tmp_path / "two", path)):
        with pytest.raises(ConfigError, match=wrong.name.replace(".", r"\.")):
            MasterLibrary(library).master(wrong)


def test_without_a_library_nothing_is_chosen_and_nothing_made(tmp_path: Path) -> None:
    assert biases(tmp_path / "none") == []
    assert not (tmp_path / "none").exists()


def test_a_damaged_table_is_an_obstacle_rather_than_no_marks(tmp_path: Path) -> None:
    added(tmp_path, 0)
    MasterLibrary(tmp_path).table.path.write_bytes(b"nothing of the kind" * 100)
    with pytest.raises(StorageError, match="table of masters"):
        biases(tmp_path)


class Known:
    """Rows that need no file."""

    def __init__(self, rows: list[MasterRow]) -> None:
        self._rows = rows

    def rows(self, ccd: int) -> list[MasterRow]:
        return [row for row in self._rows if row.ccd == ccd]


NEAR = range(-4, 5)
LIMIT = st.none() | st.sampled_from(NEAR).map(night)


@pytest.fixture(scope="module")
def nine_nights(tmp_path_factory: pytest.TempPathFactory) -> list[LibraryMaster]:
    root = tmp_path_factory.mktemp("nine")
    added(root, *NEAR)
    return MasterLibrary(root).masters()


@settings(max_examples=30, deadline=None)
@given(
    told=st.lists(
        st.tuples(st.sampled_from(Mark), LIMIT, LIMIT), min_size=len(NEAR), max_size=len(NEAR)
    ),
    days=st.integers(0, 6),
)
def test_the_choice_is_that_of_the_plain_rule(
    nine_nights: list[LibraryMaster], told: list[tuple[Mark, Night | None, Night | None]], days: int
) -> None:
    rows = [
        replace(master.row, mark=mark, valid_from=first, valid_until=last)
        for master, (mark, first, last) in zip(nine_nights, told, strict=True)
    ]
    library = MasterLibrary(nine_nights[0].path.parents[2])
    library.table = Known(rows)
    fitting = [
        day
        for day, (mark, first, last) in zip(NEAR, told, strict=True)
        if mark is Mark.GOOD
        and abs(day) <= days
        and (first is None or first <= NIGHT)
        and (last is None or last >= NIGHT)
    ]
    expected = sorted(fitting, key=lambda day: (abs(day), day))[:CHOICES]
    chosen = library.choose(exposure(), 3, Calibration(days=days))
    assert list(chosen.bias) == [nine_nights[NEAR.index(day)].path for day in expected]


@contextmanager
def writer(root: Path, moment: str) -> Iterator[Connection]:
    """Another process that makes masters until it is killed."""
    context = multiprocessing.get_context("fork")
    hears, tells = context.Pipe(duplex=False)
    process = context.Process(target=go_on, args=(root, moment, tells))
    process.start()
    try:
        assert hears.recv() == "begun"
        yield hears
    finally:
        assert process.is_alive()
        process.kill()
        process.join()


def killed(root: Path, moment: str) -> None:
    with writer(root, moment) as hears:
        assert hears.recv() == moment


@pytest.mark.parametrize("moment", ["before the row", "before the name"])
def test_a_master_whose_maker_was_killed_is_not_there(tmp_path: Path, moment: str) -> None:
    killed(tmp_path, moment)
    assert MasterLibrary(tmp_path).masters() == []
    assert biases(tmp_path) == []
    # and can be made again
    assert add(tmp_path, name_in(tmp_path), 1, Mark.HELD).mark is Mark.HELD
    assert [held.path for held in MasterLibrary(tmp_path).held()] == [name_in(tmp_path).path]


@pytest.mark.parametrize("moment", ["before the row", "before the name"])
def test_a_good_master_whose_successor_was_killed_stays_good(tmp_path: Path, moment: str) -> None:
    add(tmp_path, name_in(tmp_path), 0)
    killed(tmp_path, moment)
    (master,) = MasterLibrary(tmp_path).masters()
    assert (master.row.mark, master.row.why) == (Mark.GOOD, "0")
    assert biases(tmp_path) == [master.path]


def consistent(root: Path) -> None:
    """The row is that of the file: odd levels are held, even ones good."""
    for master in MasterLibrary(root).masters():
        level = fits.getheader(master.path, 1)["LEVEL"]
        assert master.recorded
        assert master.row.why == str(level)
        assert master.row.mark is (Mark.HELD if level % 2 else Mark.GOOD)


def test_killed_at_any_moment_the_row_is_that_of_the_file(tmp_path: Path) -> None:
    rng = random.Random(1)
    for _ in range(8):
        with writer(tmp_path, "never"):
            time.sleep(rng.uniform(0.02, 0.2))
        consistent(tmp_path)


def test_two_that_make_the_same_master_at_once_agree_on_what_it_is(tmp_path: Path) -> None:
    with writer(tmp_path, "never"), writer(tmp_path, "never"):
        for _ in range(20):
            assert all(path.is_file() for path in biases(tmp_path))
            time.sleep(0.02)
    consistent(tmp_path)
    assert MasterLibrary(tmp_path).masters()

"""When the method is asked what leaves next."""

from __future__ import annotations

from pathlib import Path

import pytest
from journal_rows import row

from prepipe.config import Method, Push
from prepipe.link.local import LocalLink
from prepipe.store import Journal
from prepipe.telescope.course import Course
from prepipe.telescope.far_side import FarSide
from prepipe.telescope.schedule import Schedule


@pytest.fixture
def journal(tmp_path: Path):
    journal = Journal(tmp_path / "journal.sqlite")
    yield journal
    journal.close()


def test_what_comes_while_the_far_side_answers_is_looked_at_at_once(journal, tmp_path):
    settings = Push(method=Method.END_OF_NIGHT, exp_min=1000)
    (tmp_path / "landing").mkdir()
    schedule = Schedule(settings, 4, 2)
    with FarSide(LocalLink(tmp_path / "landing"), 1000) as far_side:
        now = [100.0]
        course = Course(settings, journal, far_side, schedule, 0.05, lambda: now[0])
        course.keep()
        far_side.look(may_ask=True)
        journal.add_exposure(row(5, 1).exposure, [row(5, 1).ccd])
        course.change()
        far_side.question.result()
        far_side.look(may_ask=True)
        course.keep()
        assert not course.is_done, "the answer is older than what came"
        # a look later, not the minute after which a method that lacks nothing asks again
        now[0] += 0.1
        course.keep()
        far_side.look(may_ask=True)
        far_side.question.result()
        far_side.look(may_ask=True)
        course.keep()
        assert course.is_done

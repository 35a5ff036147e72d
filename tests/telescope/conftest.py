"""What the tests of the telescope's end share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from telescope_end import Telescope


@pytest.fixture
def telescope(tmp_path: Path) -> Iterator[Telescope]:
    built = Telescope(tmp_path)
    yield built
    built.journal.close()

"""The house stands: rooms import only rooms below them, and every promise of the README is kept."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "prepipe"

FLOORS = (
    {"model", "errors"},
    {"config", "files", "names"},
    {"cameras", "codec", "calibrate"},
    {"quality", "compute", "link", "store", "simulate"},
    {"engines"},
    {"telescope", "cluster"},
    {"cli"},
)
"""From the ground up; a room may use its own floor only where ALLOWED says so."""

ALLOWED = {("model", "errors"), ("codec", "cameras"), ("files", "config")}
NEVER = {("telescope", "cluster"), ("cluster", "telescope")}


def floor(room: str) -> int:
    return next(level for level, rooms in enumerate(FLOORS) if room in rooms)


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("prepipe."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.ImportFrom) and node.module == "prepipe":
            found.update(name.name for name in node.names if name.name != "__version__")
        elif isinstance(node, ast.Import):
            found.update(
                name.name.split(".")[1] for name in node.names if name.name.startswith("prepipe.")
            )
    return found


FILES = sorted(
    path for path in SOURCE.rglob("*.py") if path.parent != SOURCE or not path.stem.startswith("__")
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_room_imports_only_rooms_below_it(path: Path) -> None:
    room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    for other in imports(path) - {room}:
        assert (room, other) not in NEVER
        assert floor(other) < floor(room) or (room, other) in ALLOWED, f"{room} imports {other}"


INNER = {
    "calibrate": ("flags", "detector", "stars", "sky"),
    "engines": ("references", "detector", "builtin"),
}
"""Folders of a room, from the ground up."""


@pytest.mark.parametrize(("room", "folder"), [(r, f) for r, names in INNER.items() for f in names])
def test_a_folder_imports_only_folders_below_it(room: str, folder: str) -> None:
    order = INNER[room]
    paths = [*(SOURCE / room / folder).rglob("*.py"), *(SOURCE / room).glob(f"{folder}.py")]
    assert paths
    text = "\n".join(path.read_text() for path in paths)
    used = set(re.findall(rf"from prepipe\.{room}\.(\w+)", text)) & set(order)
    assert all(order.index(other) <= order.index(folder) for other in used)


def test_the_simulator_stands_apart() -> None:
    used = set().union(*(imports(path) for path in (SOURCE / "simulate").rglob("*.py")))
    assert used - {"simulate"} <= {"model", "errors", "files", "cameras"}


def test_the_science_knows_no_file_no_database_and_no_settings() -> None:
    used = set().union(*(imports(path) for path in (SOURCE / "calibrate").rglob("*.py")))
    assert used - {"calibrate"} <= {"model", "errors"}

"""`prepipe receive` as a person meets it; as a sender meets it stands in tests/link."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SLOW = {"numpy", "astropy", "numba", "sqlalchemy", "rich", "scipy", "prepipe.config"}


def test_it_starts_without_any_slow_library(tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "leave = os._exit\n"
        "def tell(code):\n"
        "    print(*sys.modules, file=sys.stderr, flush=True)\n"
        "    leave(code)\n"
        "os._exit = tell\n"
        "from prepipe.cli import main\n"
        "main()\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, "receive", "--landing", str(tmp_path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
        text=True,
    )
    assert ran.returncode == 0
    loaded = set(ran.stderr.split())
    assert "prepipe.link.far_end" in loaded
    assert loaded & SLOW == set()


def test_the_check_says_that_a_directory_can_be_used_and_leaves_nothing_there(run, tmp_path):
    answer = run("receive", "--landing", tmp_path, "--check")
    assert answer.exit_code == 0
    assert f"packets can land in {tmp_path}" in answer.stdout
    assert "GB" in answer.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_check_says_that_a_directory_is_missing(run, tmp_path):
    answer = run("receive", "--landing", tmp_path / "landing", "--check")
    assert answer.exit_code == 1
    assert "does not exist" in answer.stderr
    assert str(tmp_path / "landing") in answer.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_check_says_that_a_directory_is_a_file(run, tmp_path):
    (tmp_path / "landing").write_text("a file")
    answer = run("receive", "--landing", tmp_path / "landing", "--check")
    assert answer.exit_code == 1
    assert answer.stderr.count("\n") == 1


def test_a_landing_directory_below_the_home_directory_is_found(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "landing").mkdir()
    assert run("receive", "--landing", "~/landing", "--check").exit_code == 0


def test_without_a_landing_directory_it_is_wrong_use(run):
    assert run("receive").exit_code == 2


def test_a_silence_of_no_time_is_wrong_use(run, tmp_path):
    assert run("receive", "--landing", tmp_path, "--idle", "0").exit_code == 2

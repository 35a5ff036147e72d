"""Running somebody else's program: it ends when it should, and what it says is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from prepipe.cameras import load_camera
from prepipe.codec.pack import pack_ccd
from prepipe.codec.packet import write_packet
from prepipe.config import Calibration
from prepipe.engines.base import Order
from prepipe.engines.external import (
    copy_product,
    own_directories,
    plain_raw_file,
    program_path,
    raw_file,
    run_program,
    scratch_of,
    sourced_environment,
)
from prepipe.engines.raw import read_ccd, read_exposure
from prepipe.errors import ConfigError, EngineError, StorageError
from prepipe.model import Ccd

PATIENCE_S = 30.0


@pytest.fixture
def script(tmp_path: Path):
    """Write a program in Python, to be run."""

    def write(body: str, name: str = "tool") -> str:
        path = tmp_path / name
        path.write_text(f"#!{sys.executable} -IS\n{textwrap.dedent(body)}")
        path.chmod(0o755)
        return str(path)

    return write


def run(words: list[str], directory: Path, limit_s: float = 60.0, **variables: str):
    return run_program(
        words,
        log=directory / "tool.log",
        limit_s=limit_s,
        environment={"PATH": os.environ["PATH"], **variables},
        directory=directory,
    )


def wait_until(what) -> None:
    end = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


FAMILY = """
    import os, subprocess, sys, time
    child = subprocess.Popen([sys.executable, "-ISc", "import time; time.sleep(600)"])
    open("pids.part", "w").write(f"{os.getpid()} {child.pid}")
    os.rename("pids.part", "pids")
    print("half done", flush=True)
    time.sleep(600)
"""


def pids(directory: Path) -> list[int]:
    return [int(word) for word in (directory / "pids").read_text().split()]


def test_its_words_reach_it_as_they_are_and_no_shell_sees_them(script, tmp_path):
    tool = script("import sys; print(sys.argv[1:])")
    ran = run([tool, "a b", "$HOME; touch x", "*"], tmp_path)
    assert ran.status == 0
    assert ran.tail == "['a b', '$HOME; touch x', '*']"


def test_its_environment_is_the_one_given_and_no_other(script, tmp_path, monkeypatch):
    monkeypatch.setenv("LEAKED", "yes")
    tool = script("import os; print(os.environ.get('GIVEN'), os.environ.get('LEAKED'))")
    assert run([tool], tmp_path, GIVEN="this").tail == "this None"


def test_its_status_and_the_end_of_its_log_are_told(script, tmp_path):
    tool = script("import sys; print('begun'); sys.exit('no flat for CCD 3')")
    ran = run([tool], tmp_path)
    assert ran.status == 1
    failure = ran.failure("failed with status 1")
    assert isinstance(failure, EngineError)
    assert str(failure).endswith("begun | no flat for CCD 3")


def test_a_death_by_signal_is_told_as_shells_do(script, tmp_path):
    tool = script("import os; os.kill(os.getpid(), 9)")
    assert run([tool], tmp_path).status == 128 + signal.SIGKILL


def test_a_long_log_is_told_by_its_end_alone(script, tmp_path):
    tool = script("for i in range(100000): print('line', i)")
    tail = run([tool], tmp_path).tail
    assert tail.endswith("line 99999")
    assert len(tail) < 2000


def test_one_that_hangs_is_killed_with_all_that_it_started(script, tmp_path):
    with pytest.raises(EngineError, match=r"tool took more than 2 s and was killed.*half done"):
        run([script(FAMILY)], tmp_path, limit_s=2)
    wait_until(lambda: not any(alive(pid) for pid in pids(tmp_path)))


def test_one_that_ignores_the_request_to_end_is_killed_all_the_same(script, tmp_path):
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    with pytest.raises(EngineError, match="killed"):
        run([script(deaf + textwrap.dedent(FAMILY))], tmp_path, limit_s=2)
    wait_until(lambda: not any(alive(pid) for pid in pids(tmp_path)))


def test_what_it_leaves_running_ends_with_it(script, tmp_path):
    leaver = FAMILY.replace("time.sleep(600)\n", "sys.exit(0)\n").replace(
        "print(", "sys.stdout.flush(); print("
    )
    assert run([script(leaver)], tmp_path).status == 0
    wait_until(lambda: not any(alive(pid) for pid in pids(tmp_path)))


def test_it_ends_with_the_worker_that_runs_it(script, tmp_path):
    code = f"""
        from pathlib import Path
        from prepipe.engines.external import run_program
        here = Path({str(tmp_path)!r})
        run_program([{script(FAMILY)!r}], log=here / "log", limit_s=600, environment={{}},
                    directory=here)
    """
    worker = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])
    wait_until((tmp_path / "pids").exists)
    assert all(alive(pid) for pid in pids(tmp_path))
    worker.kill()
    worker.wait()
    wait_until(lambda: not any(alive(pid) for pid in pids(tmp_path)))


def test_a_program_that_is_not_there_is_the_fault_of_the_settings(tmp_path):
    with pytest.raises(ConfigError, match=r"engines\.x\.tool: no program nowhere\.pl"):
        program_path("nowhere.pl", {"PATH": str(tmp_path)}, "engines.x.tool")
    with pytest.raises(ConfigError, match="cannot be run"):
        run([str(tmp_path / "nowhere.pl")], tmp_path)


def test_a_program_is_found_on_the_path_of_its_environment(script, tmp_path):
    tool = script("", "pipe.pl")
    assert program_path("pipe.pl", {"PATH": str(tmp_path)}, "x") == tool


def test_the_environment_is_what_sourcing_a_file_in_bash_sets(tmp_path):
    setup = tmp_path / "a $(touch x) file.sourceme"
    setup.write_text("echo hello\nexport PIPE_NAME=$'two\\nlines = 2'\nPATH=/opt/pipe:$PATH\n")
    found = sourced_environment(setup)
    assert found["PIPE_NAME"] == "two\nlines = 2"
    assert found["PATH"].startswith("/opt/pipe:")


def test_an_environment_is_sourced_once_until_its_file_changes(tmp_path):
    setup = tmp_path / "sourceme"
    setup.write_text(f"echo once >> {tmp_path}/count\nexport A=1\n")
    assert sourced_environment(setup)["A"] == sourced_environment(setup)["A"] == "1"
    assert (tmp_path / "count").read_text() == "once\n"
    setup.write_text("export A=2\n")
    os.utime(setup, (1, 1))
    assert sourced_environment(setup)["A"] == "2"


def test_a_file_that_cannot_be_sourced_is_named_with_what_it_said(tmp_path):
    with pytest.raises(ConfigError, match="missing cannot be sourced"):
        sourced_environment(tmp_path / "missing")
    setup = tmp_path / "sourceme"
    setup.write_text("echo 'host not listed'\nreturn 1\n")
    with pytest.raises(ConfigError, match=r"sourceme: sourcing it .* \(host not listed\)"):
        sourced_environment(setup)


def test_settings_and_caches_of_two_orders_are_apart(tmp_path):
    one, other = own_directories(tmp_path / "1"), own_directories(tmp_path / "2")
    assert not set(one.values()) & set(other.values())
    assert all(Path(place).is_dir() for place in one.values())


def test_astropy_keeps_its_settings_where_it_is_told(tmp_path):
    told = "from astropy.config import get_config_dir; print(get_config_dir())"
    ran = run([sys.executable, "-c", told], tmp_path, HOME="/", **own_directories(tmp_path))
    assert ran.tail == str(tmp_path / "config" / "astropy")


def test_a_product_is_copied_whole_or_not_at_all(tmp_path):
    made = tmp_path / "made.fits"
    made.write_bytes(b"pixels")
    copy_product(made, tmp_path / "out" / "product.fits")
    assert (tmp_path / "out" / "product.fits").read_bytes() == b"pixels"
    with pytest.raises(StorageError):
        copy_product(tmp_path / "missing", tmp_path / "out" / "other.fits")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["product.fits"]


def test_a_scratch_directory_is_made_and_removed_where_none_is_given(tmp_path):
    order = Order(tmp_path / "x", "decam", Calibration(), tmp_path)
    with scratch_of(order) as scratch:
        (scratch / "file").touch()
    assert not scratch.exists()


KILLED = """
    import os, sys, tempfile
    from pathlib import Path
    from prepipe.config import Calibration
    from prepipe.engines.base import Order
    from prepipe.engines.external import scratch_of
    with scratch_of(Order(Path("x"), "decam", Calibration(), Path("."))) as scratch:
        (scratch / "half done").touch()
        os.utime(scratch, (0, 0))
        os.kill(os.getpid(), 9)
"""


def test_what_a_killed_worker_left_of_it_is_removed_with_the_next(tmp_path, monkeypatch):
    program = [sys.executable, "-c", textwrap.dedent(KILLED)]
    died = subprocess.run(program, env=os.environ | {"TMPDIR": str(tmp_path)}, check=False)
    assert died.returncode == -signal.SIGKILL
    assert list(tmp_path.rglob("half done"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with scratch_of(Order(tmp_path / "x", "decam", Calibration(), tmp_path)):
        assert not list(tmp_path.rglob("half done"))


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    primary = fits.PrimaryHDU()
    primary.header.update(
        {
            "EXPNUM": 941420,
            "DATE-OBS": "2020-03-06T03:30:00",
            "OBSTYPE": "object",
            "OBJECT": "field 1",
            "FILTER": "g DECam SDSS c0001 4720.0 1520.0",
            "EXPTIME": 20.0,
        }
    )
    pixels = np.arange(96 * 80, dtype=np.uint16).reshape(96, 80) * 8
    image = fits.CompImageHDU(pixels, name="S29", compression_type="RICE_1")
    image.header["CCDNUM"] = 25
    path = tmp_path / "raw.fits.fz"
    fits.HDUList([primary, image]).writeto(path)
    return path


def test_a_packet_and_a_raw_file_become_files_for_the_pipeline(raw, tmp_path):
    exposure = read_exposure(raw, load_camera("decam"))
    packet = write_packet(tmp_path, pack_ccd(raw, 1, exposure, Ccd(25, "S29"), "none"))
    whole = Order(raw, "decam", Calibration(), tmp_path, hdu=1)
    one = Order(packet, "decam", Calibration(), tmp_path)
    for order in (whole, one):
        found = raw_file(order, tmp_path / "there")
        with fits.open(found) as hdus:
            assert hdus[0].header["EXPNUM"] == 941420
            assert hdus[1].data[95, 79] == 8 * (96 * 80 - 1)


def test_a_plain_file_holds_one_image_with_the_cards_of_both_headers(raw, tmp_path):
    plain_raw_file(read_ccd(raw, 1, load_camera("decam")), tmp_path / "plain.fits")
    with fits.open(tmp_path / "plain.fits") as hdus:
        hdus.verify("exception")
        assert len(hdus) == 1
        header = hdus[0].header
        assert (header["EXPNUM"], header["CCDNUM"], header["OBJECT"]) == (941420, 25, "field 1")
        assert hdus[0].data[95, 79] == 8 * (96 * 80 - 1)

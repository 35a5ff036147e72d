"""Stands in for photpipe's two programs: their flags, files and tables as documented.

It knows the true pointing error of each CCD from a control file, and finds it if it looks near
enough; so the rescue of a CCD works here by the rules that it works by there. The control file,
JSON at STANDIN_CONTROL, may hold

- ``shift``: true pointing error by ``EXPNUM_CCD``, ``default`` for the others (arcsec);
- ``rms``: residuals in x and y, in the same way;
- ``stubborn``: CCDs that are found only with a shift given and these keys at most so large;
- ``fails``: what goes wrong with a CCD, see `misbehave`;
- ``meet``: how many runs wait for each other;
- ``columns``, ``banner``: what pipeview.pl prints.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

STAGES = ("CREATECALS", "FLATTEN", "WCSNON", "MKSATMASK", "DOPHOT")
COLUMNS = (
    "FILENAME WCSFLAG NASTRO EWCSXAS EWCSYAS WCSRASH0 WCSDESH0 WCSRASH WCSDECSH WCSRAD WCSRADEC "
    "WCSCAT WCSDB"
).split()
KEYS = {
    "WCSNON_RADECSHIFT",
    "WCSNON_SEARCHRAD",
    "WCSNON_CAT_MAXMAG",
    "WCSNON_RMSMAX",
    "WCSNON_CAT",
}
SEARCHRAD, RMSMAX = 40.0, 0.25
PATIENCE_S = 30.0


def refuse(what: str) -> None:
    print(f"ERROR: {what}")
    sys.exit(1)


def arguments(words: list[str], flags: dict[str, int]) -> dict[str, list[list[str]]]:
    """The values of each flag; a word that is none is refused."""
    found: dict[str, list[list[str]]] = {}
    words = list(words)
    while words:
        flag = words.pop(0)
        if flag not in flags or len(words) < flags[flag]:
            refuse(f"unknown option or missing value: {flag}")
        found.setdefault(flag, []).append([words.pop(0) for _ in range(flags[flag])])
    if "-red" not in found:
        refuse("-red UT CCD is needed")
    night, ccds = found["-red"][0]
    if not re.fullmatch(r"ut\d{6}", night) or not re.fullmatch(r"\d+(-\d+)?", ccds):
        refuse(f"-red {night} {ccds}: no such night or CCD")
    (number,) = found.get("-id", [["0"]])[0]
    if not re.fullmatch(r"\d+(-\d+)?", number):
        refuse(f"-id {number}: no exposure number")
    return found


def control() -> dict:
    path = os.environ.get("STANDIN_CONTROL", "")
    return json.loads(Path(path).read_text()) if path else {}


def of_ccd(table: dict, key: str, default: object) -> object:
    return table.get(key, table.get("default", default))


def note(program: str, words: list[str]) -> None:
    """Append the command line to the list of all."""
    with Path(os.environ["STANDIN_COMMANDS"]).open("a") as stream:
        stream.write(json.dumps({"program": program, "words": words}) + "\n")


def directories(night: str, ccd: str) -> tuple[Path, Path]:
    data = Path(os.environ["PIPE_DATA"])
    return data / "rawdata" / night / ccd, data / "workspace" / night / ccd


def pipeloop(words: list[str]) -> None:
    note("pipeloop.pl", words)
    flags = {"-red": 2, "-id": 1, "-im": 1, "-stage": 1, "-forcestage": 1, "-k": 2}
    given = arguments(words, flags | {"-redo": 0, "-redobad": 0, "-condor": 0})
    if "-condor" in given or os.environ.get("PIPE_BATCH_SYSTEM") != "NONE":
        refuse("no batch system here")
    (night, ccd), (number,) = given["-red"][0], given["-id"][0]
    keys = dict(given.get("-k", []))
    with own_astropy_settings(control().get("meet", 1)):
        require_parameters(keys)
        raw, workspace = directories(night, ccd)
        images = [path for path in raw.glob("*.fits") if is_sky(path, int(number), ccd)]
        if not images:
            refuse(f"no image {number} in {raw}")
        stages = given["-stage"][0][0].split(",") if "-stage" in given else list(STAGES)
        workspace.mkdir(parents=True, exist_ok=True)
        for path in images:
            reduce(path, workspace, f"{int(number)}_{ccd}", stages, keys, "-redo" in given)


def is_sky(path: Path, number: int, ccd: str) -> bool:
    found = re.fullmatch(r"[^.]+\.[^.]+\.ut\d{6}\.(\d+)_(\d+)", path.stem)
    return bool(found and not path.name.startswith(("bias.", "domeflat."))) and (
        (int(found[1]), found[2]) == (number, ccd)
    )


@contextlib.contextmanager
def own_astropy_settings(runs: int):
    """Write astropy.cfg as careless programs do: two at a time spoil it."""
    home = os.environ.get("XDG_CONFIG_HOME")
    directory = Path(home) / "astropy" if home else Path.home() / ".astropy" / "config"
    directory.mkdir(parents=True, exist_ok=True)
    writing = directory / "astropy.cfg.writing"
    try:
        os.close(os.open(writing, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        refuse("ConfigurationDefaultMissingError: astropy.cfg is corrupt")
    meet(runs)
    try:
        yield
    finally:
        writing.unlink()


def meet(runs: int) -> None:
    """Wait until so many runs are under way."""
    if runs < 2:
        return
    place = Path(os.environ["STANDIN_COMMANDS"]).with_suffix(".met")
    place.mkdir(exist_ok=True)
    (place / str(os.getpid())).touch()
    end = time.monotonic() + PATIENCE_S
    while len(list(place.iterdir())) < runs and time.monotonic() < end:
        time.sleep(0.02)


def require_parameters(keys: dict[str, str]) -> None:
    """As photpipe does when its params file lacks a key."""
    lacking = sorted(set(keys) - KEYS) + control().get("lacking", [])
    if lacking:
        print(f"Parameter {lacking[0]} not found\nExecution stopped")
        sys.exit(0)


def reduce(
    raw: Path, workspace: Path, key: str, stages: list[str], keys: dict[str, str], anew: bool
) -> None:
    told = workspace / "standin.json"
    state = json.loads(told.read_text()) if told.exists() else {}
    entry = {} if anew else state.get(raw.stem, {})
    if entry.get("WCSFLAG") == 1:
        print(f"{raw.stem}: nothing to redo")
        return
    image = workspace / raw.name
    misbehave(control().get("fails", {}).get(key), raw, image)
    if "FLATTEN" in stages:
        image.write_bytes(raw.read_bytes())
    if "WCSNON" in stages:
        entry = solve(key, keys)
        print("MSCCMATCH:", raw.name, "solved" if entry["WCSFLAG"] else "search failed")
    if "DOPHOT" in stages and entry.get("WCSFLAG") == 1:
        image.with_suffix(".dcmp").write_text("1 2 -10.5\n")
    state[raw.stem] = entry
    told.write_text(json.dumps(state))


def misbehave(how: str | None, raw: Path, image: Path) -> None:
    half = raw.read_bytes()[: raw.stat().st_size // 2]
    if how == "exit 0 without image":
        print("flatten: cannot open bias, skipping")
        sys.exit(0)
    if how == "exit 1":
        refuse("flatten died")
    if how == "crash":
        image.write_bytes(half)
        os.kill(os.getpid(), signal.SIGSEGV)
    if how == "hang":
        image.write_bytes(half)
        child = subprocess.Popen([sys.executable, "-ISc", "import time; time.sleep(600)"])
        pids = f"{os.getpid()} {child.pid}"
        Path(os.environ["STANDIN_COMMANDS"]).with_suffix(".pids").write_text(pids)
        print("msccmatch goes on and on", flush=True)
        time.sleep(600)
    if how == "half an image":
        image.write_bytes(half)
        image.with_name("standin.json").write_text(json.dumps({raw.stem: row(1, 200)}))
        sys.exit(0)


def row(flag: int, stars: int, **figures: object) -> dict[str, object]:
    """A line of the table; nothing but zeros where no star was matched."""
    zeros = dict.fromkeys(COLUMNS[3:10], 0.0)
    names = {"WCSRADEC": "NONE", "WCSCAT": "WEB2MASS_J", "WCSDB": "2012-10-02.db"}
    return {"WCSFLAG": flag, "NASTRO": stars} | zeros | names | figures


def solve(key: str, keys: dict[str, str]) -> dict[str, object]:
    """Find the true shift, if the search begins near it."""
    told = control()
    true = of_ccd(told.get("shift", {}), key, [12.0, -7.5])
    begun = [float(part) for part in keys.get("WCSNON_RADECSHIFT", "0,0").split(",")]
    radius = float(keys.get("WCSNON_SEARCHRAD", SEARCHRAD))
    found = math.dist(true, begun) <= radius
    stubborn = told.get("stubborn", {}).get(key)
    if stubborn is not None:
        limits = all(float(keys.get(name, 1e9)) <= most for name, most in stubborn.items())
        found = found and limits and "WCSNON_RADECSHIFT" in keys
    if not found:
        return row(0, 0)
    rms = of_ccd(told.get("rms", {}), key, [0.15, 0.12])
    return row(
        int(max(rms) <= float(keys.get("WCSNON_RMSMAX", RMSMAX))),
        66,
        EWCSXAS=rms[0],
        EWCSYAS=rms[1],
        WCSRASH0=true[0],
        WCSDESH0=true[1],
        WCSRASH=round(true[0] - begun[0], 3),
        WCSDECSH=round(true[1] - begun[1], 3),
        WCSRAD=radius,
        WCSRADEC=keys.get("WCSNON_RADECSHIFT", "NONE"),
    )


def pipeview(words: list[str]) -> None:
    note("pipeview.pl", words)
    given = arguments(words, {"-red": 2, "-stage": 1, "-im": 1, "-id": 1, "-wcs": 0})
    if "-wcs" not in given or given.get("-stage") != [["WCSNON"]]:
        refuse("only the table of WCSNON is known here")
    (night, ccd), (number,) = given["-red"][0], given["-id"][0]
    told = directories(night, ccd)[1] / "standin.json"
    state = json.loads(told.read_text()) if told.exists() else {}
    columns = control().get("columns", COLUMNS)
    print("\n".join(control().get("banner", [])))
    print(" ".join(columns))
    for stem, entry in sorted(state.items()):
        if entry and int(stem.rpartition(".")[2].split("_")[0]) == int(number):
            cells = entry | {"FILENAME": stem}
            print(" ".join(str(cells.get(column, "extra")) for column in columns))

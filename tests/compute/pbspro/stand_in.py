"""A stand-in for PBS Pro's commands, as strict as their reference guide; jobs are real processes.

Its server is a directory, named by PBS_STAND_IN, in which lie::

    sequence     number of the last job
    jobs/ID      what is known of a job, JSON
    away         there while the server shall not be reachable
    no-history   there while ended jobs shall be forgotten (job_history_enable = False)
"""

from __future__ import annotations

import fcntl
import getpass
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

SERVER = "pbs-server"
CORES = 8
QUEUES = ("workq", "realtime")
UNKNOWN, FINISHED, NO_CONNECTION, REFUSED = 153, 35, 162, 1
KILL_DELAY_S = 2.0

WITH_ARGUMENT = "aAcCeJjklmMNopPqruSvW"
FLAGS = "fhIRVxXz"
IN_A_CHUNK = {"ncpus", "mem", "vmem", "mpiprocs", "ompthreads", "ngpus", "host", "arch"}
OF_A_JOB = {"select", "place", "walltime", "cput", "software"}

ROOT = Path(os.environ.get("PBS_STAND_IN", "/nonexistent"))


def refuse(command: str, text: str, code: int = REFUSED) -> None:
    sys.stderr.write(f"{command}: {text}\n")
    sys.exit(code)


def reach_server(command: str) -> None:
    if (ROOT / "away").exists() or not ROOT.is_dir():
        sys.stderr.write("Connection refused\n")
        refuse(command, f"cannot connect to server {SERVER} (errno=15010)", NO_CONNECTION)
    (ROOT / "jobs").mkdir(exist_ok=True)


@contextmanager
def locked():
    with (ROOT / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def load(job_id: str) -> dict | None:
    try:
        return json.loads((ROOT / "jobs" / job_id).read_text())
    except FileNotFoundError:
        return None


def save(job: dict) -> None:
    path = ROOT / "jobs" / job["id"]
    partial = ROOT / f"{job['id']}.{os.getpid()}.new"
    partial.write_text(json.dumps(job))
    partial.replace(path)


def change(job_id: str, **facts: object) -> dict:
    with locked():
        job = load(job_id) | facts
        save(job)
    return job


# ---------------------------------------------------------------------------- qsub


def directives(script: str) -> list[str]:
    """Words of the #PBS lines: up to the first line that the shell would carry out."""
    words = []
    for line in script.splitlines():
        if line.startswith("#PBS "):
            words += shlex.split(line[5:])
        elif line.strip() and not line.startswith("#"):
            break
    return words


def options(words: list[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Options with their arguments, and what is left."""
    found, words = [], list(words)
    while words and words[0].startswith("-"):
        word = words.pop(0)
        letter, rest = word[1:2], word[2:]
        if letter in FLAGS and letter and not rest:
            found.append((letter, ""))
        elif letter and letter in WITH_ARGUMENT and (rest or words):
            found.append((letter, rest or words.pop(0)))
        else:
            refuse("qsub", f"invalid option -- '{word}'", 2)
    return found, words


def seconds(walltime: str) -> int:
    if not re.fullmatch(r"(\d+:){0,2}\d+", walltime):
        refuse("qsub", "Illegal attribute or resource value Resource_List.walltime", 170)
    total = 0
    for part in walltime.split(":"):
        total = 60 * total + int(part)
    return total


def cores_of(select: str) -> int:
    total = 0
    for chunk in select.split("+"):
        count, *resources = chunk.split(":")
        if not count.isdigit():
            resources, count = [count, *resources], "1"
        told = dict(one.partition("=")[::2] for one in resources)
        if not all(told.values()) or not told.keys() <= IN_A_CHUNK:
            refuse("qsub", f"Unknown resource in select specification: {chunk}", 169)
        total += int(count) * int(told.get("ncpus", "1"))
    return total


def resources(told: str, job: dict) -> None:
    for one in re.split(r",(?=[a-z]+=)", told):
        name, _, value = one.partition("=")
        if name == "nodes":
            refuse("qsub", "Illegal attribute or resource value Resource_List.nodes", 170)
        if name in IN_A_CHUNK:
            refuse("qsub", f'Resource "{name}" must be in a chunk of "select"', 169)
        if name not in OF_A_JOB or not value:
            refuse("qsub", f"Unknown resource: {name}", 169)
        if name == "select":
            job["cores"] = cores_of(value)
        if name == "walltime":
            job["walltime_s"] = seconds(value)
        job["Resource_List"][name] = value


def take(found: list[tuple[str, str]], job: dict) -> None:
    names = {"A": "Account_Name", "q": "queue", "N": "Job_Name", "o": "out", "e": "err"}
    for letter, argument in found:
        if letter == "l":
            resources(argument, job)
        elif letter == "N" and not re.fullmatch(r"[A-Za-z0-9][!-~]{0,235}", argument):
            refuse("qsub", f"illegal -N value: {argument}", 2)
        elif letter == "r" and argument not in "yn":
            refuse("qsub", "illegal -r value", 2)
        elif letter == "q" and argument not in QUEUES:
            refuse("qsub", "Unknown queue", 170)
        elif letter in names:
            job[names[letter]] = argument
        elif letter == "h":
            job["job_state"] = "H"
        elif letter == "V":
            refuse("qsub", "this site does not take -V")


def qsub(words: list[str]) -> None:
    reach_server("qsub")
    told, left = options(words)
    if len(left) != 1:
        refuse("qsub", "script file expected", 2)
    script = Path(left[0])
    if not script.is_file():
        refuse("qsub", f"script file:: No such file or directory: {script}")
    job = {"job_state": "Q", "queue": "workq", "cores": 1, "walltime_s": 3600, "Resource_List": {}}
    inside, more = options(directives(script.read_text()))
    if more:
        refuse("qsub", f"directive error: {more}", 2)
    take(inside, job)
    take(told, job)
    with locked():
        counter = ROOT / "sequence"
        number = int(counter.read_text()) + 1 if counter.exists() else 100
        counter.write_text(str(number))
        job_id = f"{number}.{SERVER}"
        spooled = ROOT / f"{number}.SC"
        spooled.write_text(script.read_text())
        job |= {"id": job_id, "script": str(spooled), "ctime": time.ctime()}
        job |= {"Job_Owner": f"{getpass.getuser()}@{socket.gethostname()}"}
        save(job)
    subprocess.Popen(
        [sys.executable, __file__, "mom", job_id],
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    print(job_id)


# ---------------------------------------------------------------------------- running a job


def begins(job_id: str) -> bool:
    """Take the cores if there are enough of them."""
    with locked():
        jobs = [json.loads(path.read_text()) for path in (ROOT / "jobs").iterdir()]
        taken = sum(job["cores"] for job in jobs if job["job_state"] == "R")
        job = load(job_id)
        if job["job_state"] == "F":
            sys.exit()
        if job["job_state"] == "H" or taken + job["cores"] > CORES:
            return False
        save(job | {"job_state": "R"})
    return True


def mom(job_id: str) -> None:
    """Wait for room, carry the job out, deliver what it said, remember how it ended."""
    while not begins(job_id):
        if not ROOT.is_dir():
            return
        time.sleep(0.2)
    job = load(job_id)
    number = job_id.partition(".")[0]
    private = ROOT / f"tmp.{number}"
    private.mkdir()
    environment = {
        "HOME": os.environ.get("HOME", "/"),
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "PBS_JOBID": job_id,
        "PBS_JOBNAME": job.get("Job_Name", "STDIN"),
        "PBS_QUEUE": job["queue"],
        "PBS_ENVIRONMENT": "PBS_BATCH",
        "TMPDIR": str(private),
    }
    out, err = ROOT / f"{number}.OU", ROOT / f"{number}.ER"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(
            ["/bin/bash", job["script"]],
            cwd=environment["HOME"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
        change(job_id, session=process.pid)
        try:
            code = process.wait(job["walltime_s"])
        except subprocess.TimeoutExpired:
            end_session(process.pid)
            code = process.wait()
    for told, spooled in ((job.get("out"), out), (job.get("err"), err)):
        if told:
            Path(told.rpartition(":")[2]).write_bytes(spooled.read_bytes())
    subprocess.run(["rm", "-rf", str(private)], check=False)
    change(job_id, job_state="F", Exit_status=code if code >= 0 else 256 - code)


def end_session(session: int) -> None:
    """SIGTERM to all of a job, then SIGKILL: as a mom does that knows a job by its session."""
    for number, patience_s in ((signal.SIGTERM, KILL_DELAY_S), (signal.SIGKILL, 0.0)):
        for process in members(session):
            with suppress(ProcessLookupError):
                os.kill(process, number)
        until = time.monotonic() + patience_s
        while members(session) and time.monotonic() < until:
            time.sleep(0.05)


def members(session: int) -> list[int]:
    """Processes of a session, and their descendants in sessions of their own."""
    parents, found = {}, []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            pid = int(stat.parent.name)
            parents[pid] = int(fields[1])
            if int(fields[3]) == session:
                found.append(pid)
    for pid in found:
        found += [
            child for child, parent in parents.items() if parent == pid and child not in found
        ]
    return found


# ---------------------------------------------------------------------------- qstat and qdel


def known(command: str, job_id: str) -> dict | None:
    """A job by its id; of one that ended there may be no history."""
    job = load(job_id if "." in job_id else f"{job_id}.{SERVER}")
    if job is None or (job["job_state"] == "F" and (ROOT / "no-history").exists()):
        sys.stderr.write(f"{command}: Unknown Job Id {job_id}\n")
        return None
    return job


def qstat(words: list[str]) -> None:
    reach_server("qstat")
    flags = set()
    while words and words[0].startswith("-"):
        word = words.pop(0)
        if word == "-F":
            word += words.pop(0)
        if word not in ("-x", "-f", "-Fjson", "-Fdsv"):
            refuse("qstat", f"invalid option -- '{word}'", 2)
        flags.add(word)
    if not {"-f", "-Fjson"} <= flags:
        refuse("qstat", "this stand-in only knows -f -F json")
    code, shown = 0, {}
    for job_id in words or [path.name for path in sorted((ROOT / "jobs").iterdir())]:
        job = known("qstat", job_id)
        if job is None:
            code = UNKNOWN
        elif job["job_state"] == "F" and "-x" not in flags:
            if words:
                sys.stderr.write(f"qstat: {job_id} Job has finished, use -x or -H to obtain it\n")
                code = FINISHED
        else:
            hidden = ("id", "script", "cores", "walltime_s", "session", "out", "err")
            shown[job["id"]] = {name: job[name] for name in job if name not in hidden}
    answer = {"timestamp": int(time.time()), "pbs_version": "22.05.11", "pbs_server": SERVER}
    if shown:
        answer["Jobs"] = shown
    print(json.dumps(answer, indent=4))
    sys.exit(code)


def qdel(words: list[str]) -> None:
    reach_server("qdel")
    code = 0
    for job_id in words:
        job = known("qdel", job_id)
        if job is None:
            code = UNKNOWN
        elif job["job_state"] == "F":
            sys.stderr.write(f"qdel: Job has finished {job_id}\n")
            code = FINISHED
        else:
            delete(job["id"])
    sys.exit(code)


def delete(job_id: str) -> None:
    with locked():
        job = load(job_id)
        if job["job_state"] in "QH":
            save(job | {"job_state": "F", "Exit_status": 271})
            return
    while not job.get("session") and job["job_state"] == "R":
        time.sleep(0.02)
        job = load(job_id)
    if job.get("session"):
        subprocess.Popen([sys.executable, __file__, "end", str(job["session"])])


COMMANDS = {"qsub": qsub, "qstat": qstat, "qdel": qdel}

if __name__ == "__main__":
    role, what = sys.argv[1:3]
    mom(what) if role == "mom" else end_session(int(what))

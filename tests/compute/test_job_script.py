"""What a job looks like: every setting finds its way into it, or is refused with a reason."""

from __future__ import annotations

import re

import pytest
from pydantic import ValidationError

from prepipe.compute.batch import BatchCompute
from prepipe.compute.scaling import rest_s, wanted_jobs
from prepipe.compute.scheduler import script_of
from prepipe.config import Compute
from prepipe.errors import ConfigError

ALL = {
    "account": "oz123",
    "queue": "realtime",
    "walltime_min": 95,
    "cores": 6,
    "ccds": 5,
    "memory_gb": 24,
    "modules": ("python/3.11", "odd name"),
    "environment": {"STARLINK": "/opt/star link"},
    "setup": ("source /opt/venv/bin/activate",),
    "address": "10.1.0.5",
    "ports": (54100, 54200),
}


def script_lines(system, tmp_path, **told):
    settings = Compute(place=system.place, **(ALL | told))
    script, command = script_of(settings, tmp_path / "job", time_limit_s=600.0)
    return script.splitlines(), command


def directives(lines):
    """Those that the scheduler sees: before the first line that the shell carries out."""
    first = next(k for k, line in enumerate(lines) if line and not line.startswith("#"))
    return lines[:first]


OF_PLACE = {
    "slurm": (
        {"reservation": "dwf_night", "tmp_gb": 40, "options": ("#SBATCH --qos=rt",)},
        [
            "#SBATCH --account=oz123",
            "#SBATCH --partition=realtime",
            "#SBATCH --reservation=dwf_night",
            "#SBATCH --time=95",
            "#SBATCH --cpus-per-task=6",
            "#SBATCH --mem=24g",
            "#SBATCH --tmp=40G",
            "#SBATCH --no-requeue",
            "#SBATCH --qos=rt",
        ],
        "sbatch ",
    ),
    "torque": (
        {"reservation": "dwf_night", "tmp_gb": 40, "options": ("#PBS -W x=NACCESSPOLICY:SHARED",)},
        [
            "#PBS -l advres=dwf_night",
            "#PBS -l walltime=01:35:00",
            "#PBS -l nodes=1:ppn=6",
            "#PBS -l mem=24gb",
            "#PBS -l file=40gb",
            "#PBS -r n",
            "#PBS -W x=NACCESSPOLICY:SHARED",
        ],
        " -q realtime -A oz123 ",
    ),
    "pbspro": (
        {"options": ("#PBS -l place=pack",)},
        [
            "#PBS -l select=1:ncpus=6:mem=24gb",
            "#PBS -l walltime=01:35:00",
            "#PBS -r n",
            "#PBS -l place=pack",
        ],
        " -q realtime -A oz123 ",
    ),
}


def test_the_scheduler_sees_every_setting_that_is_for_it(system, tmp_path):
    told, wanted, words = OF_PLACE[system.place]
    lines, command = script_lines(system, tmp_path, **told)
    assert [line for line in wanted if line not in directives(lines)] == []
    assert words in command


def test_a_job_prepares_itself_in_the_order_modules_environment_setup_workers(system, tmp_path):
    lines, _ = script_lines(system, tmp_path)
    wanted = [
        "module load python/3.11 || "
        "{ echo 'prepipe: module python/3.11 cannot be loaded' >&2; exit 3; }",
        "module load 'odd name' || "
        "{ echo 'prepipe: module odd name cannot be loaded' >&2; exit 3; }",
        "export OMP_NUM_THREADS=1",
        "export STARLINK='/opt/star link'",
        "source /opt/venv/bin/activate",
    ]
    workers = next(k for k, line in enumerate(lines) if "process_worker_pool.py" in line)
    places = [lines.index(line) for line in wanted]
    assert places == sorted(places)
    assert places[-1] < workers


def test_a_job_runs_as_many_workers_as_it_may_calibrate_ccds_at_once_and_knows_the_way_back(
    system, tmp_path
):
    lines, _ = script_lines(system, tmp_path)
    (workers,) = (line for line in lines if "process_worker_pool.py" in line)
    assert "--max_workers_per_node=5" in workers
    assert "-a 10.1.0.5" in workers
    assert "--port=54100" in workers
    # no more work is taken ten minutes and a start before the end
    assert f"--drain_period={95 * 60 - 600 - 60}" in workers


def test_what_is_not_told_is_not_asked_for(system, tmp_path):
    settings = Compute(place=system.place, memory_gb=0)
    script, command = script_of(settings, tmp_path / "job", 600.0)
    for word in ("mem", "--tmp", "file=", "account", "partition", "reservation", "advres"):
        assert word not in "\n".join(directives(script.splitlines()))
    assert " -A" not in command
    assert " -q" not in command


def test_a_script_is_shown_with_the_name_and_the_paths_that_the_job_would_have(system, tmp_path):
    lines, command = script_lines(system, tmp_path)
    names = [line for line in lines if re.search(r"-name=|#PBS -N", line)]
    assert [re.split("[= ]", line)[-1] for line in names] == ["prepipe"]
    shown = "\n".join([*lines, command])
    assert f"--cert_dir {tmp_path}/job/ccds/certificates" in shown
    assert f"{tmp_path}/job/scripts/" in command
    assert not (tmp_path / "job").exists()


def test_nothing_is_submitted_to_show_a_script(system, tmp_path):
    before = system.submitted()
    script_lines(system, tmp_path)
    assert system.submitted() == before


def test_a_path_that_jobs_cannot_take_is_refused(system, tmp_path):
    with pytest.raises(ConfigError, match=r"my disk.*set cluster\.work"):
        script_of(Compute(place=system.place), tmp_path / "my disk", 600.0)


@pytest.mark.parametrize(
    ("place", "command"), [("slurm", "sbatch"), ("torque", "qsub"), ("pbspro", "qsub")]
)
def test_missing_commands_of_the_batch_system_are_named(monkeypatch, tmp_path, place, command):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ConfigError, match=f"compute.place is {place}, but there is no {command}"):
        BatchCompute(Compute(place=place), tmp_path)


@pytest.mark.parametrize(
    ("told", "complaint"),
    [
        ({"place": "lsf"}, "'local', 'slurm', 'torque' or 'pbspro'"),
        ({"place": "pbspro", "reservation": "R12"}, "a reservation is a queue"),
        ({"place": "pbspro", "tmp_gb": 40}, "no common word for tmp_gb"),
        ({"jobs": 2, "jobs_ready": 3}, r"jobs_ready \(3\) is more than jobs \(2\)"),
        ({"shared_slots": 2}, "shared_slots needs scratch"),
        ({"scratch": "tmp"}, "must begin with / or with"),
        ({"ports": (55000, 54000)}, "the first must be below the second"),
        ({"ports": (80, 54000)}, "greater than or equal to 1024"),
        ({"account": "a; rm"}, "pattern"),
        ({"queue": "night queue"}, "pattern"),
        ({"reservation": "$(id)"}, "pattern"),
        ({"environment": {"A B": "1"}}, "'A B' is no name of a variable"),
        ({"environment": {"A": "1\n2"}}, "must be one line"),
        ({"setup": ("one\ntwo",)}, "must be one line"),
        ({"place": "slurm", "options": ("--qos=rt",)}, "must begin with #SBATCH"),
        ({"place": "torque", "options": ("#SBATCH --qos=rt",)}, "must begin with #PBS"),
        ({"walltime_min": 1}, "greater than or equal to 2"),
        ({"cores": 0}, "greater than or equal to 1"),
        ({"jobs": 0}, "greater than or equal to 1"),
        ({"nodes": 3}, "not permitted"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_a_reason(told, complaint):
    with pytest.raises(ValidationError, match=complaint):
        Compute(**told)


def test_a_job_calibrates_one_ccd_a_core_unless_told():
    assert Compute(cores=6).at_once == 6
    assert Compute(cores=6, ccds=9).at_once == 9


@pytest.mark.parametrize(
    ("orders", "jobs"), [(0, 1), (1, 1), (4, 1), (5, 2), (8, 2), (9, 3), (1000, 3)]
)
def test_as_many_jobs_are_wanted_as_the_work_fills_between_those_kept_and_the_most(orders, jobs):
    assert wanted_jobs(orders, at_once=4, ready=1, most=3) == jobs


def test_jobs_that_die_unborn_are_rested_longer_each_time_up_to_five_minutes():
    assert [rest_s(failures) for failures in (0, 1, 2, 3)] == [0.0, 5.0, 10.0, 20.0]
    assert rest_s(1000) == 300.0

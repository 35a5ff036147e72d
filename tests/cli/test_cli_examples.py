"""The example settings: they are read, they are what their cluster wants, and doctor knows them."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest
from typer.testing import CliRunner

from prepipe.cli import app
from prepipe.cli.batch import check_scheduler, check_seen_by_nodes
from prepipe.cli.checks import State
from prepipe.config import Cluster, Site

EXAMPLES = sorted(
    path.name.removesuffix(".toml") for path in (files("prepipe.cli") / "examples").iterdir()
)


def written(tmp_path, name):
    out = tmp_path / "prepipe.toml"
    done = CliRunner().invoke(app, ["init", "--like", name, "--out", str(out)])
    assert done.exit_code == 0, done.output
    return out


def test_what_init_says_fits_the_file(tmp_path):
    said = {}
    for name in EXAMPLES:
        words = ["init", "--like", name, "--out", str(tmp_path / f"{name}.toml")]
        said[name] = CliRunner().invoke(app, words).stdout
    assert {name for name, text in said.items() if "doctor --only cluster`" in text} == {
        "g2",
        "ozstar",
    }
    assert "telescope.raw" not in "".join(said.values())


def test_there_is_one_for_slurm_one_for_pbs_and_one_for_a_single_machine(tmp_path):
    places = {Site.read(written(tmp_path / name, name)).compute.place for name in EXAMPLES}
    assert places == {"local", "slurm", "torque"}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_a_site_that_can_be_read(tmp_path, name):
    assert Site.read(written(tmp_path, name)).name


def test_an_unknown_example_is_refused_with_those_there_are(tmp_path):
    done = CliRunner().invoke(
        app, ["init", "--like", "gadi", "--out", str(tmp_path / "prepipe.toml")]
    )
    assert done.exit_code == 2
    assert "g2, laptop, ozstar" in done.output


def test_the_doctor_names_what_a_host_lacks_to_submit_jobs(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    check = check_scheduler("slurm")
    assert check.state is State.FAILURE
    assert "sbatch, squeue, scancel" in check.found


def test_the_doctor_warns_of_directories_that_only_this_host_sees():
    site = Site(cluster=Cluster(work=Path("/tmp/work"), products=Path("/srv/products")))
    check = check_seen_by_nodes(site)
    assert check.state is State.WARNING
    assert "cluster.work" in check.found
    assert "cluster.products" not in check.found

"""`prepipe init` and `prepipe config`."""

from __future__ import annotations

import json
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from prepipe.cli.settings import commented_toml, toml_value
from prepipe.config import Link, Pack, Site
from prepipe.errors import ConfigError

VALUES = st.recursive(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x7f"))
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab c.é"), inner),
    max_leaves=8,
)


@given(VALUES)
def test_a_value_read_back_from_toml_is_the_same(value):
    assert tomllib.loads(f"x = {toml_value(value)}")["x"] == value


def test_the_written_settings_read_back_as_the_defaults():
    assert Site.model_validate(tomllib.loads(commented_toml(Site()))) == Site()


def test_other_settings_survive_being_written_too():
    site = Site(
        name='a "quoted" name',
        pack=Pack(qstep=1e-05),
        link=Link(kind="ssh", host="far", options=("-oProxyJump=gate",)),
    )
    assert Site.model_validate(tomllib.loads(commented_toml(site))) == site


def test_every_setting_is_there_with_its_description():
    text = commented_toml(Site())
    assert "# directory the instrument writes raw exposures to\nraw = " in text
    for section, model in Site():
        names = dict(model) if isinstance(model, BaseModel) else ()
        assert not names or f"[{section}]" in text
        for name in names:
            ways = (f"\n{name} = ", f"\n# {name} = ", f"\n[{section}.{name}]\n")
            assert any(way in text for way in ways)


def test_init_writes_a_file_that_can_be_read(run, tmp_path):
    out = tmp_path / "prepipe.toml"
    assert run("init", "--out", out).exit_code == 0
    assert Site.read(out) == Site().anchored(tmp_path.resolve())


def test_init_never_overwrites_unasked(run, tmp_path):
    out = tmp_path / "prepipe.toml"
    out.write_text("name = 'mine'\n")
    answer = run("init", "--out", out)
    assert answer.exit_code == 2
    assert "--force" in answer.stderr
    assert out.read_text() == "name = 'mine'\n"


def test_init_overwrites_when_forced(run, tmp_path):
    out = tmp_path / "prepipe.toml"
    out.write_text("name = 'mine'\n")
    assert run("init", "--out", out, "--force").exit_code == 0
    assert Site.read(out).name == Site().name


def test_init_does_not_take_a_directory_for_a_file(run, tmp_path):
    assert run("init", "--out", tmp_path, "--force").exit_code == 2


def test_config_marks_what_differs_from_the_defaults(run, tmp_path):
    config = tmp_path / "site.toml"
    config.write_text('[push]\nmethod = "serial"\n')
    lines = run("config", "--config", config).stdout.splitlines()
    marked = [line for line in lines if line.strip().startswith("*")]
    assert len(marked) == 1
    assert marked[0].split() == ["*", "push.method", '"serial"', '"batch"']


def test_config_as_json_tells_all_settings_and_the_changed_ones(run, tmp_path):
    config = tmp_path / "site.toml"
    config.write_text('[telescope]\nraw = "/data/raw"\n')
    told = json.loads(run("config", "--config", config, "--json").stdout)
    assert told["settings"]["telescope"]["raw"] == "/data/raw"
    assert told["settings"]["push"]["method"] == "batch"
    assert list(told["changed"]) == ["telescope.raw"]
    assert told["changed"]["telescope.raw"]["default"] == str(tmp_path.resolve() / "raw")


def test_config_with_an_unknown_setting_is_wrong_use(run, tmp_path):
    config = tmp_path / "site.toml"
    config.write_text("[push]\nmethods = 1\n")
    answer = run("config", "--config", config)
    assert answer.exit_code == 2
    assert "there is no setting 'push.methods'" in answer.stderr


def test_limits_of_a_camera_and_of_its_bands_are_shown_and_written(run, tmp_path):
    path = tmp_path / "site.toml"
    path.write_text(
        "[limits.g]\nseeing_arcsec = [1.0, 2.0, 3.0]\n"
        "[limits.decam]\nellipticity = [0.1, 0.2, 0.3]\n"
        "[limits.decam.r]\nseeing_arcsec = [1.1, 2.0, 3.0]\n"
        "[limits.sdss.r]\nseeing_arcsec = [1.8, 2.0, 3.0]\n"
    )
    site = Site.read(path)
    assert list(site.limits) == ["g", "decam", "decam.r", "sdss.r"]
    shown = json.loads(run("config", "--config", path, "--json").stdout)["settings"]["limits"]
    assert shown["decam.r"]["seeing_arcsec"] == [1.1, 2.0, 3.0]
    path.write_text(commented_toml(site))
    assert Site.read(path).limits == site.limits


def test_a_wrong_limit_of_a_camera_and_band_is_named(tmp_path):
    path = tmp_path / "site.toml"
    path.write_text("[limits.decam.r]\nseeing = [1.1, 2.0, 3.0]\n")
    with pytest.raises(ConfigError, match=r"limits\.decam\.r\.seeing"):
        Site.read(path)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ('cluster.journal = "postgresql://me:secret@host/db"', "~/.pgpass"),
        ('telescope.journal = "mysql://me@host/db"', "postgresql+psycopg://USER@HOST/DATABASE"),
        ('telescope.journal = "journal.sqlite"', "postgresql+psycopg://USER@HOST/DATABASE"),
        (
            'telescope.journal = "postgresql://me@h/db"\ncluster.journal = "postgresql://me@h/db"',
            "must be two databases",
        ),
        (
            'telescope.journal = "postgresql://me@h/db"\n'
            'cluster.journal = "postgresql+psycopg://me@h/db"',
            "must be two databases",
        ),
        ('cluster.journal = "postgresql://me@host/db?password=secret"', "~/.pgpass"),
    ],
)
def test_a_wrong_place_for_a_journal_is_named(run, tmp_path, setting, told):
    path = tmp_path / "prepipe.toml"
    path.write_text(setting)
    answer = run("config", "--config", path)
    assert answer.exit_code == 2
    assert told in answer.stderr
    assert "secret" not in answer.output


@pytest.mark.parametrize("more", [("--engine", "photpipe"), ("--all",)])
def test_init_like_a_site_takes_no_choice_that_it_would_not_heed(run, tmp_path, more):
    answer = run("init", "--out", tmp_path / "prepipe.toml", "--like", "ozstar", *more)
    assert answer.exit_code == 2
    assert "--like" in answer.stderr
    assert not (tmp_path / "prepipe.toml").exists()


def test_init_leaves_out_the_pipelines_that_are_not_used(run, tmp_path):
    out = tmp_path / "prepipe.toml"
    run("init", "--out", out)
    assert "[engines" not in out.read_text()
    run("init", "--out", out, "--force", "--engine", "photpipe")
    assert "[engines.photpipe]" in out.read_text()
    assert "[engines.lsst]" not in out.read_text()
    assert Site.read(out).calibration.engine == "photpipe"
    run("init", "--out", out, "--force", "--all")
    assert "[engines.photpipe]" in out.read_text()
    assert "[engines.lsst]" in out.read_text()


def test_init_with_an_engine_that_is_none_names_those_there_are(run, tmp_path):
    answer = run("init", "--out", tmp_path / "prepipe.toml", "--engine", "photpip")
    assert answer.exit_code == 2
    assert "photpipe, hscpipe, lsst" in answer.stderr


def test_paths_of_a_pipeline_are_taken_from_the_directory_of_the_settings(tmp_path):
    path = tmp_path / "site.toml"
    path.write_text('[engines.photpipe]\ndata = "photpipe/data"\n')
    assert Site.read(path).engines.photpipe.data == tmp_path.resolve() / "photpipe" / "data"

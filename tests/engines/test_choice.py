"""Which engine a site gets by the name in its settings."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from prepipe.config import Calibration, Site
from prepipe.engines.base import Engine
from prepipe.engines.choice import open_engine
from prepipe.errors import ConfigError

MODULE = """
from prepipe.engines.base import Engine
def reduce(order): ...
whole = Engine("whole", reduce, wants_calibrations=True)
number = 3
"""


@pytest.fixture
def choose(tmp_path, monkeypatch):
    (tmp_path / "site_engine.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return lambda name: open_engine(Site(calibration=Calibration(engine=name)))


def test_the_builtin_engine_keeps_zeros_and_flats_for_the_masters(choose):
    engine = choose("builtin")
    assert (engine.name, engine.wants_calibrations) == ("builtin", False)
    assert engine.warm_up is not None


def test_a_function_of_ones_own_becomes_an_engine(choose):
    engine = choose("site_engine:reduce")
    assert isinstance(engine, Engine)
    assert engine.work.__name__ == "reduce"


def test_an_engine_of_ones_own_is_taken_as_it_is(choose):
    assert choose("site_engine:whole").wants_calibrations


@pytest.mark.parametrize("name", ["site_engine:nothing", "no_such_module:reduce"])
def test_one_that_cannot_be_loaded_is_named(choose, name):
    with pytest.raises(ConfigError, match=rf"calibration\.engine: {name} cannot be loaded"):
        choose(name)


def test_one_that_is_no_function_is_refused(choose):
    with pytest.raises(ConfigError, match="neither a function"):
        choose("site_engine:number")


@pytest.mark.parametrize("name", ["photpip", "", "a:b:c", "os.system", "../x:y", "x:y\n"])
def test_a_name_of_another_form_is_refused_in_the_settings(name):
    with pytest.raises(ValidationError):
        Calibration(engine=name)

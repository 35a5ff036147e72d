"""Which settings of a site reach which codec."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from prepipe.codec import codec_names, get_codec
from prepipe.config import PACK_SETTINGS, Pack


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, {"preset": "fast", "fill": True}),
        ({"seeing_px": 4.0, "fill": False}, {"preset": "fast", "seeing_px": 4.0}),
        ({"preset": "precise", "ratio": 9.0}, {"preset": "precise", "ratio": 9.0, "fill": True}),
        ({"codec": "jpeg2000"}, {"ratio": 10.0}),
        ({"codec": "jpeg2000", "rms_sigma": 0.3, "preset": "precise"}, {"rms_sigma": 0.3}),
        ({"codec": "htj2k"}, {}),
        ({"codec": "htj2k", "step_sigma": 1.0, "seeing_px": 4.0}, {"step_sigma": 1.0}),
        ({"codec": "rice", "ratio": 9.0}, {}),
    ],
)
def test_a_codec_is_told_what_is_set_and_concerns_it(
    settings: dict[str, object], told: dict[str, object]
) -> None:
    assert Pack.model_validate(settings).parameters == told


@pytest.mark.parametrize("codec", sorted(set(codec_names()) & set(PACK_SETTINGS)))
def test_every_setting_of_a_codec_is_known_to_it(codec: str, frame: object) -> None:
    values = {"preset": "precise", "seeing_px": 3.0, "fill": True, "ratio": 9.0}
    values |= {"qstep": 1e-4, "rms_sigma": 0.5, "step_sigma": 1.0}
    for name in PACK_SETTINGS[codec]:
        get_codec(codec).encode(frame, {name: values[name]})


@pytest.mark.parametrize(
    "settings",
    [
        {"ratio": 10.0, "qstep": 1e-5},
        {"ratio": 10.0, "rate_mbit_s": 50.0},
        {"rate_mbit_s": 50.0, "codec": "htj2k"},
        {"strongest": "precise"},
        {"strongest": "faint-link", "codec": "jpeg2000"},
        {"strongest": "faint-link", "ratio": 20.0},
        {"strongest": "faint-link", "rate_mbit_s": 20.0},
        {"backlog_s": 0.0},
        {"rms_sigma": 0.3, "step_sigma": 1.0},
        {"preset": "best"},
        {"seeing_px": 0.0},
        {"seeing_px": float("nan")},
        {"external": {"encode": ["f2j", "{input}"]}},
        {"external": {"suffix": "/x"}},
        {"external": {"timeout_s": 0}},
    ],
)
def test_settings_that_contradict_each_other_or_make_no_sense_are_refused(
    settings: dict[str, object],
) -> None:
    with pytest.raises(ValidationError):
        Pack.model_validate(settings)

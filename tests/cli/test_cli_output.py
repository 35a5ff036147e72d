"""What commands print."""

from __future__ import annotations


def test_what_a_header_says_cannot_command_the_terminal():
    from prepipe.cli.output import printable

    assert printable("field\x1b[2J\n2") == "field?[2J\n2"


def test_one_of_something_is_told_in_the_singular():
    from prepipe.cli.output import counted

    assert [counted(n, "night") for n in (0, 1, 2)] == ["0 nights", "1 night", "2 nights"]


def test_what_a_codec_is_told_is_spelt_alike_by_a_trial_and_a_check():
    from prepipe.store.checks import codec_label
    from prepipe.telescope.trial import Setting

    label = "wavelet:preset=fast,fill=true"
    setting = Setting.parse(label)
    assert setting.label == codec_label(setting.codec, setting.parameters) == label

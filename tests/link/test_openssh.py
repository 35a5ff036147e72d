"""What OpenSSH is told."""

from __future__ import annotations

import subprocess

import pytest
from private_sshd import need_sshd

from prepipe import config
from prepipe.link.openssh import cipher_options

SETTINGS = config.Link.model_validate(
    {"kind": "ssh", "host": "far.example", "options": ("-F/dev/null",)}
)
CHEAPEST = "aes128-gcm@openssh.com"


def ciphers(*options: str) -> list[str]:
    """Those that ssh would offer, in that order."""
    need_sshd()
    command = ["ssh", "-F/dev/null", *options, "-G", "far.example"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    (found,) = (line for line in lines if line.startswith("ciphers "))
    return found.removeprefix("ciphers ").split(",")


def test_the_cheapest_cipher_is_asked_for_first_and_all_others_are_offered_too() -> None:
    offered = ciphers(*cipher_options(SETTINGS))
    assert offered[0] == CHEAPEST
    assert sorted(offered) == sorted(ciphers())


def test_the_ciphers_are_told_in_full_as_an_openssh_before_8_1_wants_them() -> None:
    (option,) = cipher_options(SETTINGS)
    assert option.removeprefix("-oCiphers=").split(",")[0] == CHEAPEST


@pytest.mark.parametrize("own", ["aes256-ctr", f"aes256-ctr,{CHEAPEST}"])
def test_ciphers_that_the_user_chose_are_left_alone(own: str) -> None:
    chosen = SETTINGS.model_copy(update={"options": ("-F/dev/null", f"-oCiphers={own}")})
    assert cipher_options(chosen) == []

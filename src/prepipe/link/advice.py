"""What an SSH client's complaint means, and what to do about it."""

from __future__ import annotations

import re

__all__ = ["advice", "is_passing"]

_BROKE = "the connection broke; it is tried again"

_REMEDIES = (
    (
        r"(?i)prepipe\S*: (command )?not found|prepipe\S*: No such file",
        "there is no prepipe there; install it for the user there, or tell where it is with "
        "link.command",
    ),
    (
        r"No such command|No module named",
        "the prepipe there is an older one, or broken; install the same version at both ends",
    ),
    (
        r"IDENTIFICATION HAS CHANGED",
        "its host key is not the one this user knows; ask its administrator whether it was "
        "replaced before you remove the old one with `ssh-keygen -R`",
    ),
    (
        r"Host key verification failed|No .* host key is known",
        "its host key is not known to this user; log in once by hand with ssh and compare the "
        "fingerprint",
    ),
    (
        r"Too many authentication failures",
        "it gave up after too many keys; name the right one with IdentityFile in ~/.ssh/config",
    ),
    (
        r"Permission denied \(",
        "it takes none of this user's keys; add the public key to authorized_keys there, or "
        "unlock the key with ssh-add",
    ),
    (
        r"Permission denied",
        "the landing directory may not be written; give the user there the permission",
    ),
    (
        r"Connection refused",
        "no SSH server answers there; see that it runs and that the port is right",
    ),
    (
        r"No route to host|Network is unreachable",
        "there is no way to it; see whether the network or the VPN is up",
    ),
    (
        r"Could not resolve|Name or service not known",
        "its name cannot be resolved; see the spelling of link.host and the name server",
    ),
    (
        r"timed out|not responding",
        "it does not answer; see whether the network is up and no firewall is in the way",
    ),
    (
        r"subsystem request failed",
        "its SSH server offers no sftp; ask its administrator for `Subsystem sftp`",
    ),
    (
        r"Connection (closed|reset)|Broken pipe|closed by remote",
        _BROKE,
    ),
    (
        r"No such file",
        "a file or directory is missing there; see link.landing",
    ),
)


_PASSING = re.compile(
    r"Connection (refused|closed|reset)|Broken pipe|closed by remote|No route to host|"
    r"Network is unreachable|Could not resolve|timed out|not responding|"
    r"Temporary failure in name resolution"
)


def is_passing(complaint: str) -> bool:
    """Whether it is the network or a machine that is down, which come back by themselves."""
    return not complaint.strip() or _PASSING.search(complaint) is not None


def advice(complaint: str, where: str) -> str:
    """Say in one sentence what is wrong and what to do.

    Parameters
    ----------
    complaint : str
        What the client wrote to its standard error.
    where : str
        The far side, as the user names it.
    """
    said = [line.strip() for line in complaint.splitlines() if line.strip()]
    for pattern, remedy in _REMEDIES:
        if re.search(pattern, complaint):
            return remedy
    if said:
        return f"{said[0]!r} is what it says; try `ssh {where}` by hand"
    # a shared connection that dies takes its sessions along without a word
    return _BROKE

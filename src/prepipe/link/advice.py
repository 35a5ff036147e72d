"""What an SSH client's complaint means, and what to do about it."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["Ending", "advice", "is_passing", "sentence"]

_LONGEST = 500

_BROKE = "the connection broke; it is tried again"

_NO_PREPIPE = (
    "there is no prepipe there; install it for the user there, or tell where it is with "
    "link.command"
)
_NOT_FOUND, _NOT_TO_BE_RUN, _OF_SSH_ITSELF = 127, 126, 255
"""Exit codes: the far shell's, and ssh's for all that goes wrong before or below."""

_REMEDIES = (
    (
        r"(?i)prepipe\S*: (command )?not found|prepipe\S*: No such file",
        _NO_PREPIPE,
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


def sentence(text: str) -> str:
    """What somebody else wrote, as one line of bearable length that steers no terminal."""
    line = "".join(each if each.isprintable() else " " for each in text)
    line = " ".join(line.split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."


def advice(complaint: str, where: str) -> str:
    """Say in one sentence what is wrong and what to do.

    Parameters
    ----------
    complaint : str
        What the client wrote to its standard error.
    where : str
        The far side, as the user names it.
    """
    for pattern, remedy in _REMEDIES:
        if re.search(pattern, complaint):
            return remedy
    said = [line for line in map(sentence, complaint.splitlines()) if line]
    if said:
        # the last line of a traceback is the one that tells
        telling = said[-1] if said[0].startswith("Traceback") else said[0]
        return f"{telling!r} is what it says; try `ssh {where}` by hand"
    # a shared connection that dies takes its sessions along without a word
    return _BROKE


@dataclass(frozen=True)
class Ending:
    """How a connection ended.

    Parameters
    ----------
    fault : str
        What we found wrong, or were told by the far end, in a sentence; may be empty.
    reason : str
        Of a refusal; empty if there was none.
    complaint : str
        What ssh wrote to its standard error.
    noise : str
        What came in place of a greeting; some shells complain to standard output.
    exit_code : int
        Of ssh: that of the program at the far end, or 255.
    """

    fault: str = ""
    reason: str = ""
    complaint: str = ""
    noise: str = ""
    exit_code: int = _OF_SSH_ITSELF

    @property
    def _said(self) -> str:
        return self.complaint if self.complaint.strip() else self.noise

    @property
    def _by_itself(self) -> bool:
        """Whether the program at the far end ended, rather than the connection."""
        return 0 <= self.exit_code != _OF_SSH_ITSELF

    @property
    def is_passing(self) -> bool:
        """Whether it comes right by itself, so that it is worth trying again soon."""
        if self.reason:
            return False
        if self.fault:
            return True
        return not self._by_itself and is_passing(self.complaint)

    @property
    def wants_login(self) -> bool:
        """Whether the server takes none of the keys."""
        return "Permission denied (" in self.complaint

    def told(self, where: str) -> str:
        """What is wrong and what to do, in one sentence.

        Parameters
        ----------
        where : str
            The far side, as the user names it.
        """
        if self.fault:
            return sentence(self.fault)
        if self.exit_code == _NOT_FOUND:
            return _NO_PREPIPE
        if self.exit_code == _NOT_TO_BE_RUN:
            return "the prepipe there may not be run; see its permissions, or link.command"
        if self._by_itself and not self._said.strip():
            return (
                f"what should be prepipe there ended with exit code {self.exit_code} without a "
                "word; see link.command"
            )
        return advice(self._said, where)

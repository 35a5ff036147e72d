"""A line, a link that is open over it, and exposures that cross."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wan import ALLOWED_CONGESTION, Wan

from crossing import sender
from crossing.exposures import BITS, last_landed, write_exposure

RTT_MS = 240.0
OUTAGE_LATER_S = 3.0
WITHOUT_BBR = {"congestion": "cubic", "connections": 16}
"""What nearly all kernels do that refuse bbr, and the connections that the pool then takes."""


@dataclass(frozen=True)
class Cell:
    """One line, and what crosses it.

    Parameters
    ----------
    rate : float
        Mbit/s.
    exposures : int
        In a row, one right behind the other.
    rate_known : bool
        Whether the link is told the rate, or has to find it.
    """

    name: str
    rate: float
    loss: float
    exposures: int = 1
    rounds: int = 5
    bbr: bool = True
    rate_known: bool = True
    outage_s: float = 0.0

    @property
    def line(self) -> dict[str, float]:
        """What wanlink has to know."""
        return {"rtt": RTT_MS, "rate": self.rate, "loss": self.loss}

    @property
    def best_s(self) -> float:
        """Seconds at line rate."""
        return self.exposures * BITS / (self.rate * 1e6)


@dataclass(frozen=True)
class Round:
    """What was measured while the exposures of a cell crossed."""

    seconds: float
    landed_s: float
    cpu_s: float
    peak_mib: float
    complaints: list[str]
    line: dict[str, int]

    def sentence(self, cell: Cell) -> str:
        """All of it."""
        return (
            f"{self.seconds:.2f} s, landed {self.landed_s:.2f} s, "
            f"{cell.best_s / self.seconds:.3f} of the rate, {self.cpu_s / self.seconds:.2f} cores, "
            f"{self.peak_mib:.0f} MiB, {self.line['rx_bytes'] / 1e6:.1f} MB on the line, dropped "
            f"{self.line['drop_queue']} by its queue, {self.line['drop_loss']} at random, "
            f"{self.line['drop_outage']} by its outage"
            + "".join(f"\n    {complaint}" for complaint in self.complaints)
        )


class Bench:
    """A context manager; one exposure has crossed when it is entered.

    Parameters
    ----------
    cell : Cell
    changes : dict
        Settings of the link beyond those that the cell asks for.
    """

    def __init__(self, cell: Cell, changes: dict[str, Any]) -> None:
        self.cell = cell
        self.home = Path(tempfile.mkdtemp(prefix="prepipe-bench-"))
        self.landing = self.home / "landing"
        self.landing.mkdir()
        self.wan = Wan(self.home / "wan", congestion=ordinary_congestion(), **cell.line)
        rate = {"rate": cell.rate if cell.rate_known else "auto"}
        wished = rate | ({} if cell.bbr else WITHOUT_BBR) | changes
        self._sender: subprocess.Popen[str] | None = None
        self.settings = self.wan.settings(self.landing, **wished)

    def __enter__(self) -> Bench:
        try:
            self.wan.__enter__()
            with self.wan.at_telescope():
                self._sender = subprocess.Popen(
                    [sys.executable, sender.__file__],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            self._ask(self.settings.model_dump(mode="json"))
            self._send(1)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._sender is not None:
            # it closes its link, unless that hangs
            with suppress(subprocess.TimeoutExpired):
                self._sender.communicate(timeout=10)
        self.wan.stop()
        shutil.rmtree(self.home)

    def cross(self, outage_s: float = 0.0) -> Round:
        """Let the cell's exposures cross, while the line is perhaps down for a time."""
        self.wan.reset()
        cpu = self._cpu_seconds()
        if outage_s:
            self.wan.outage(outage_s, OUTAGE_LATER_S)
        answer, landed_s = self._send(self.cell.exposures)
        return Round(
            answer["seconds"],
            landed_s,
            self._cpu_seconds() - cpu,
            answer["peak_mib"],
            answer["complaints"],
            self.wan.statistics()["a_to_b"],
        )

    def _send(self, exposures: int) -> tuple[Any, float]:
        """What the sender says, and when the last packet had landed, s after the first."""
        packets = [path for _ in range(exposures) for path in write_exposure(self.home / "raw")]
        answer = self._ask([str(packet) for packet in packets])
        landed = last_landed(packets, self.landing)
        for packet in packets:
            packet.unlink()
            (self.landing / packet.name).unlink()
        return answer, landed - answer["began"]

    def _ask(self, question: Any) -> Any:
        assert self._sender is not None
        assert self._sender.stdin is not None
        assert self._sender.stdout is not None
        self._sender.stdin.write(json.dumps(question) + "\n")
        self._sender.stdin.flush()
        answer = self._sender.stdout.readline()
        if not answer:
            raise SystemExit("the sender ended; its complaint stands above")
        return json.loads(answer)

    def _cpu_seconds(self) -> float:
        """Of both ends together; wanlink itself stands at neither."""
        return sum(
            sum(process.cpu_times()[:4])
            for end in (self.wan.telescope, self.wan.cluster)
            for process in self.wan.processes(end)
        )


def ordinary_congestion() -> str:
    """What most machines use; namespaces may not have every one."""
    return "cubic" if "cubic" in ALLOWED_CONGESTION.read_text().split() else "reno"

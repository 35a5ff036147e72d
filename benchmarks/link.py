"""How much of a long line the link fills, and how much of it scp, rsync and sftp do.

    python benchmarks/link.py [--quick] [--json] [--cell NAME] [--rounds N] [--set KEY=VALUE]

An exposure is 60 packets of 1 MB. It crosses an emulated line of 240 ms between two network
namespaces (so this needs root, as the tests of the line do) to a real sshd. The link is open and
one exposure has crossed before the clock starts; figures are medians over rounds. A round ends
when the last packet is acknowledged, ``fraction_landed`` when it stood under its final name.
The line's rate counts bytes of IP: 0.965 is the most that TCP can show, and a lone exposure
pays one round trip on top.

The near end's sockets begin with an ordinary congestion control (cubic, or reno where the
kernel lets namespaces have no other), whatever this machine's own. Peers begin with the machine's
own; each crosses a line of its own, at the same time as the others, and is rated by what has
landed if it is not through after a while. ``scp_one_file`` sends the same bytes as one file.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from crossing import peers
from crossing.bench import Bench, Cell, Round
from crossing.exposures import write_exposure
from wan import Wan, what_is_missing

Row = dict[str, Any]

QUICK = "200mbit.loss1e-4"
CELLS = (
    Cell("100mbit.loss1e-4", 100, 1e-4),
    Cell("200mbit.loss0", 200, 0),
    Cell(QUICK, 200, 1e-4),
    Cell("200mbit.loss1e-3", 200, 1e-3),
    Cell("500mbit.loss1e-4.row4", 500, 1e-4, exposures=4),
    Cell("200mbit.loss1e-4.row4", 200, 1e-4, exposures=4, rounds=3),
    Cell("200mbit.loss1e-4.nobbr", 200, 1e-4, bbr=False),
    Cell("200mbit.loss1e-4.auto", 200, 1e-4, exposures=4, rounds=3, rate_known=False),
    Cell("outage12", 200, 1e-4, exposures=4, rounds=3, outage_s=12.0),
)
LIMIT_S, QUICK_LIMIT_S = 150.0, 20.0


def main() -> None:
    """Measure and print."""
    options = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    if message := what_is_missing():
        sys.exit(message)
    cells = [cell for cell in CELLS if cell.name in options.cell]
    rows = []
    for cell in cells:
        rows += measure(cell, options.rounds or cell.rounds, options.idle, dict(options.set))
    if options.peers:
        for rate, loss in dict.fromkeys((cell.rate, cell.loss) for cell in cells):
            rows += meet_peers(rate, loss, options.quick)
    if options.json:
        print(json.dumps({"rows": rows}, indent=2))
    else:
        for each in rows:
            print(f"{each['name']:48s} {each['value']:10.3f} {each['unit']}")


def parse() -> argparse.Namespace:
    """What is asked for; cells that are named are measured without peers."""
    names = [cell.name for cell in CELLS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--quick", action="store_true", help=f"{QUICK} only, three rounds")
    add("--json", action="store_true", help="one JSON object with rows")
    add(
        "--cell",
        action="append",
        choices=names,
        metavar="NAME",
        help=f"only this; may be given again: {', '.join(names)}",
    )
    add("--peers", action="store_true", help="peers also where cells are named")
    add("--rounds", type=int, help="of each cell")
    add("--idle", type=float, default=2.0, help="seconds between rounds")
    add(
        "--set",
        action="append",
        default=[],
        type=assignment,
        metavar="KEY=VALUE",
        help="another setting of [link], as TOML",
    )
    options = parser.parse_args()
    options.peers |= options.cell is None
    options.rounds = options.rounds or (3 if options.quick else None)
    options.cell = options.cell or ([QUICK] if options.quick else names)
    return options


def assignment(text: str) -> tuple[str, Any]:
    """One ``key = value`` of TOML."""
    ((key, value),) = tomllib.loads(text).items()
    return key, value


def measure(cell: Cell, rounds: int, idle_s: float, changes: dict[str, Any]) -> list[Row]:
    """One cell, over a link that stays open."""
    with Bench(cell, changes) as bench:
        even = list(several(bench, rounds, idle_s, 0.0))
        cut = list(several(bench, rounds, idle_s, cell.outage_s)) if cell.outage_s else []
    if cut:
        base = statistics.median(each.seconds for each in even)
        return [row(f"{cell.name}.cost_s", [each.seconds - base for each in cut], "s")]
    filled = [cell.best_s / each.seconds for each in even]
    landed = [cell.best_s / each.landed_s for each in even]
    rows = [
        row(f"fraction.{cell.name}", filled, "of line rate"),
        row(f"fraction_landed.{cell.name}", landed, "of line rate"),
    ]
    if cell.rate == 500:
        rows.append(row("cpu.500mbit.cores", [each.cpu_s / each.seconds for each in even], "cores"))
        rows.append(row("memory.sender_mib", [max(each.peak_mib for each in even)], "MiB"))
    return rows


def several(bench: Bench, rounds: int, idle_s: float, outage_s: float) -> Iterator[Round]:
    """Some rounds, each told on standard error."""
    for number in range(1, rounds + 1):
        time.sleep(idle_s)
        done = bench.cross(outage_s)
        said = f"{bench.cell.name} {number}: {done.sentence(bench.cell)}"
        print(said, file=sys.stderr, flush=True)
        yield done


def meet_peers(rate: float, loss: float, quick: bool) -> list[Row]:
    """Each peer once."""
    present = [peer for peer in (peers.QUICK if quick else peers.ALL) if peers.installed(peer)]
    limit_s = QUICK_LIMIT_S if quick else LIMIT_S
    with ThreadPoolExecutor(len(present)) as threads:
        return list(threads.map(lambda peer: meet(peer, rate, loss, limit_s), present))


def meet(peer: str, rate: float, loss: float, limit_s: float) -> Row:
    """One exposure by one peer."""
    cell = Cell(f"{rate:.0f}mbit.loss{short(loss)}", rate, loss)
    with tempfile.TemporaryDirectory(prefix="prepipe-bench-") as directory:
        home = Path(directory)
        packets = write_exposure(home / "raw")
        with Wan(home / "wan", **cell.line) as wan:
            done = peers.cross(peer, wan, packets, home / "landing", limit_s)
    unit = "of line rate" if done.whole else f"of line rate, stopped after {done.seconds:.0f} s"
    return row(f"{peer}.{cell.name}", [done.bytes * 8 / (rate * 1e6) / done.seconds], unit)


def short(loss: float) -> str:
    """``0.0001`` as ``1e-4``."""
    return f"{loss:.0e}".replace("e-0", "e-") if loss else "0"


def row(name: str, values: list[float], unit: str) -> Row:
    """The median, and every round beside it."""
    value = round(statistics.median(values), 4)
    return {"name": name, "value": value, "unit": unit, "rounds": [round(v, 4) for v in values]}


if __name__ == "__main__":
    sys.exit(main())

"""A site with a photpipe that is stood in for."""

from __future__ import annotations

import json
from pathlib import Path

from prepipe.config import Calibration, Engines, Photpipe
from prepipe.engines.base import Order
from prepipe.model import PointingHint

STANDINS = Path(__file__).parent / "standins"
NIGHT = "ut200306"


class PhotpipeSite:
    """Its directories, what its programs are told to do, and what they were asked."""

    def __init__(self, root: Path, **settings) -> None:
        self.root = root
        self.data, self.products = root / "pipe data", root / "products"
        self.data.mkdir()
        self.sourceme = root / "dwf.bash.sourceme"
        self.sourceme.write_text(
            f"export PATH={STANDINS}:$PATH\n"
            "export PIPE_INSTRUMENT=DECAM\n"
            f"export PIPE_DATA='{self.data}'\n"
            f"export STANDIN_CONTROL='{root}/control.json'\n"
            f"export STANDIN_COMMANDS='{root}/commands.jsonl'\n"
        )
        self.settings = Photpipe(sourceme=self.sourceme, **settings)
        self.control()

    def control(self, **told) -> None:
        (self.root / "control.json").write_text(json.dumps(told))

    def order(self, packet: Path, *hints: PointingHint, **changes) -> Order:
        return Order(
            source=packet,
            camera="decam",
            calibration=Calibration(engine="photpipe"),
            products=self.products,
            hints=hints,
            settings=Engines(photpipe=self.settings),
            **changes,
        )

    def commands(self, program: str = "pipeloop.pl", ccd: int | None = None) -> list[str]:
        """The command lines so far, of one CCD or of all."""
        path = self.root / "commands.jsonl"
        if not path.exists():
            return []
        told = [json.loads(line) for line in path.read_text().splitlines()]
        return [
            f"{each['program']} {' '.join(each['words'])}"
            for each in told
            if program in ("", each["program"]) and ccd in (None, int(each["words"][2]))
        ]

    def rawdata(self, ccd: int) -> list[str]:
        return sorted(path.name for path in (self.data / "rawdata" / NIGHT / str(ccd)).iterdir())

    def products_made(self) -> list[str]:
        return sorted(path.name for path in self.products.rglob("*") if path.is_file())

"""What ``benchmarks/link.py`` is made of; the line itself is that of the tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "link"))

"""``python -m prepipe``."""

from prepipe.cli import main

main()

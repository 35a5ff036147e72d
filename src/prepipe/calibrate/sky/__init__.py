"""From sources to the sky: reference catalogue, WCS, zero point."""

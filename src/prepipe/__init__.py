"""From a telescope's raw exposures to calibrated, graded CCDs on a cluster, within minutes."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("dwf-prepipe")
except PackageNotFoundError:
    __version__ = "0+unknown"

__all__ = ["__version__"]

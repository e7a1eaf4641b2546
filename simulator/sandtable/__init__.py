"""Simulate hardware and cost for machine-learning workloads, and check the simulation against real runs."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("sandtable")
except PackageNotFoundError:  # a checkout on sys.path that was never installed
    __version__ = "0+unknown"

__all__ = ["__version__"]

"""Simulate hardware and cost for machine-learning workloads, and check the simulation against real runs."""

__all__ = ["__version__"]


def __getattr__(name: str) -> str:
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # not at the top: reading metadata takes as long as answering --help
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("sandtable")
    except PackageNotFoundError:  # a checkout on sys.path that was never installed
        return "0+unknown"

"""Simulate hardware and cost for machine-learning workloads, and check the simulation against real runs.

What is listed in ``__all__`` is the public interface, documented in `sandtable.api`; whoever writes devices, kernels,
workloads or adapters also uses the seams that the READMEs name. All else is private.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sandtable.api import (
        calibrate,
        check,
        devices,
        list_runs,
        load_machine,
        prices,
        resume,
        run,
        score,
        simulate,
        study,
        whatif,
    )
    from sandtable.errors import SandtableError

    __version__: str

__all__ = [
    "SandtableError",
    "__version__",
    "calibrate",
    "check",
    "devices",
    "list_runs",
    "load_machine",
    "prices",
    "resume",
    "run",
    "score",
    "simulate",
    "study",
    "whatif",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for, so that importing this package costs nothing."""
    from importlib import import_module

    if name == "__version__":
        return _version()
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "sandtable.errors" if name == "SandtableError" else "sandtable.api"
    return getattr(import_module(module), name)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("sandtable-ml")
    except PackageNotFoundError:  # a checkout on sys.path that was never installed
        return "0+unknown"

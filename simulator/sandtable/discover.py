"""Find kernels and workloads through the entry point group ``sandtable.plugins``.

Each entry point names a package; every module in it is imported, and every concrete `Kernel` or `Workload` defined
there is found by itself. Nothing is registered by hand, and the core names no kernel and no workload.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import lru_cache
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any, TypeVar

from sandtable.errors import ConfigError, UnknownName
from sandtable.plan import Kernel
from sandtable.workload import Workload

GROUP = "sandtable.plugins"
T = TypeVar("T")


@lru_cache(maxsize=1)
def _modules() -> tuple[ModuleType, ...]:
    modules: list[ModuleType] = []
    for point in entry_points(group=GROUP):
        package = point.load()
        modules.append(package)
        found = pkgutil.walk_packages(package.__path__, prefix=f"{package.__name__}.")
        # modules in `FAST_PATH` need an optional package, and only the fast path imports them
        skipped = {f"{package.__name__}.{name}" for name in getattr(package, "FAST_PATH", ())}
        modules.extend(importlib.import_module(info.name) for info in found if info.name not in skipped)
    return tuple(modules)


def _concrete(base: type[T]) -> dict[str, type[T]]:
    found: dict[str, type[T]] = {}
    for module in _modules():
        for _, item in inspect.getmembers(module, inspect.isclass):
            if not issubclass(item, base) or inspect.isabstract(item) or item.__module__ != module.__name__:
                continue
            name = str(item.name)  # type: ignore[attr-defined]
            if found.setdefault(name, item) is not item:
                raise ConfigError(f"{base.__name__.lower()} {name!r} is defined twice: {found[name]} and {item}")
    return found


@lru_cache(maxsize=1)
def kernels() -> dict[str, Kernel]:
    """Return every kernel by name."""
    return {name: kind() for name, kind in sorted(_concrete(Kernel).items())}  # type: ignore[type-abstract]


@lru_cache(maxsize=1)
def workloads() -> dict[str, Workload[Any]]:
    """Return every workload by name."""
    return {name: kind() for name, kind in sorted(_concrete(Workload).items())}  # type: ignore[type-abstract]


def workload(name: str) -> Workload[Any]:
    """Return the workload of that name.

    Raises:
        UnknownName: with the nearest names.
    """
    known = workloads()
    if name not in known:
        raise UnknownName("workload", name, known)
    return known[name]

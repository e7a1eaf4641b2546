"""Find what installed packages offer through the entry point group ``sandtable.plugins``.

Each entry point names a package; every module in it is imported, and every concrete class of a wanted kind (a kernel, a
workload) that is defined there is found by itself. Nothing is registered by hand, and the core names no package.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import lru_cache
from importlib.metadata import entry_points
from types import ModuleType
from typing import TypeVar

from sandtable.errors import ConfigError

GROUP = "sandtable.plugins"
# what a package calls the list of its modules and sub-packages that need an optional package; they are not imported
FAST_PATH = "FAST_PATH"
T = TypeVar("T")


@lru_cache(maxsize=1)
def modules() -> tuple[ModuleType, ...]:
    """Import and return every module of every package that an entry point names."""
    found: list[ModuleType] = []
    for point in entry_points(group=GROUP):
        found.extend(modules_of(point.load()))
    return tuple(found)


def modules_of(package: ModuleType) -> list[ModuleType]:
    """Import and return a package and every module below it, those of its fast path left out."""
    skipped = {f"{package.__name__}.{name}" for name in getattr(package, FAST_PATH, ())}
    found = [package]
    for info in pkgutil.iter_modules(package.__path__, prefix=f"{package.__name__}."):
        if info.name not in skipped:
            module = importlib.import_module(info.name)
            found.extend(modules_of(module) if info.ispkg else [module])
    return found


def classes(base: type[T], within: tuple[ModuleType, ...] | None = None) -> dict[str, type[T]]:
    """Return every concrete class of a kind by its ``name``, sorted.

    Raises:
        ConfigError: two classes of one name.
    """
    found: dict[str, type[T]] = {}
    for module in modules() if within is None else within:
        for _, item in inspect.getmembers(module, inspect.isclass):
            if not issubclass(item, base) or inspect.isabstract(item) or item.__module__ != module.__name__:
                continue
            name = str(item.name)  # type: ignore[attr-defined]
            if found.setdefault(name, item) is not item:
                raise ConfigError(f"{base.__name__.lower()} {name!r} is defined twice: {found[name]} and {item}")
    return dict(sorted(found.items()))

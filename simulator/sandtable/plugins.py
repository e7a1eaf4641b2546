"""Find what installed packages offer through the entry point group ``sandtable.plugins``.

Each entry point names a package; every module in it is imported, and every concrete class of a wanted kind (a kernel, a
workload) that is defined there is found by itself. Nothing is registered by hand, and the core names no package.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from sandtable.errors import ConfigError

GROUP = "sandtable.plugins"
# what a package calls the list of its modules and sub-packages that need an optional package; they are not imported
FAST_PATH = "FAST_PATH"
PUBLISHED = "published"
# ends the name of a module with a group of commands: ``NAME_commands`` adds ``sandtable NAME``
COMMANDS = "_commands"
T = TypeVar("T")


@lru_cache(maxsize=2)
def modules(*, published: bool = False) -> tuple[ModuleType, ...]:
    """Import and return the modules of every package that an entry point names.

    Adapters of published rows lie in packages called ``published``, which only their own commands need: these are
    returned alone with ``published``, and left out without.
    """
    found: list[ModuleType] = []
    for point in entry_points(group=GROUP):
        if published or not _is_published(point.value):
            found.extend(modules_of(point.load(), published=published))
    return tuple(module for module in found if not published or _is_published(module.__name__))


def _is_published(name: str) -> bool:
    return PUBLISHED in name.split(".")


def modules_of(package: ModuleType, *, published: bool = False) -> list[ModuleType]:
    """Import and return a package and every module below it, those of its fast path left out."""
    skipped = {f"{package.__name__}.{name}" for name in getattr(package, FAST_PATH, ())}
    found = [package]
    for info in pkgutil.iter_modules(package.__path__, prefix=f"{package.__name__}."):
        if info.name not in skipped and (published or not _is_published(info.name.removeprefix(package.__name__))):
            module = importlib.import_module(info.name)
            found.extend(modules_of(module, published=published) if info.ispkg else [module])
    return found


def classes(base: type[T], *, published: bool = False) -> dict[str, type[T]]:
    """Return every concrete class of a kind that has a ``name``, by it, sorted; see `modules` for ``published``.

    Raises:
        ConfigError: two classes of one name.
    """
    found: dict[str, type[T]] = {}
    for module in modules(published=published):
        for _, item in inspect.getmembers(module, inspect.isclass):
            name = getattr(item, "name", None)
            if not issubclass(item, base) or inspect.isabstract(item) or item.__module__ != module.__name__:
                continue
            if not isinstance(name, str):
                continue  # a common part of several
            if found.setdefault(name, item) is not item:
                raise ConfigError(f"{base.__name__.lower()} {name!r} is defined twice: {found[name]} and {item}")
    return dict(sorted(found.items()))


def instances(base: type[T], *, published: bool = False) -> dict[str, T]:
    """Return one of every concrete class of a kind by its ``name``; see `classes`."""
    return {name: kind() for name, kind in classes(base, published=published).items()}


def command_modules() -> dict[str, str]:
    """Return the modules with groups of commands of every package that an entry point names, by the group's name.

    Found by the names of files: nothing of them is imported. Such a module has the group as ``app``, a `typer.Typer`.
    """
    found: dict[str, str] = {}
    for package in {point.value for point in entry_points(group=GROUP)}:
        spec = importlib.util.find_spec(package)
        for root in (spec.submodule_search_locations or ()) if spec is not None else ():
            for path in Path(root).rglob(f"*{COMMANDS}.py"):
                parts = path.relative_to(root).with_suffix("").parts
                found.setdefault(path.stem.removesuffix(COMMANDS), ".".join((package, *parts)))
    return dict(sorted(found.items()))

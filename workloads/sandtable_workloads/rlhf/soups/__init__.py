"""Soups: checkpoints averaged in weight space, read and written as a stream.

``soup(["a", "b"], "out", [0.5, 0.5])`` and ``greedy_soup(["a", "b", "c"], "out", score)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sandtable_workloads.rlhf.soups.soup_making import Soup, SoupOptions, greedy_soup, soup

__all__ = ["Soup", "SoupOptions", "greedy_soup", "soup"]

# none of these holds a workload
FAST_PATH = ("soup_checks", "soup_arithmetic", "soup_layout", "soup_loops", "soup_making", "soup_pass", "soup_use")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sandtable_workloads.rlhf.soups import soup_making

    return getattr(soup_making, name)

"""Figures drawn with matplotlib, for files: the one place that imports it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sandtable.errors import missing_extra


def new_figure(width_in: float, height_in: float, title: str, *, title_size: float | str = "large") -> Any:
    """Return an empty matplotlib figure, its sizes in inches.

    Raises:
        NoDevice: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise missing_extra("matplotlib", "report") from None
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    figure.suptitle(title, fontsize=title_size)
    return figure


def save(figure: Any, path: Path) -> None:
    """Write a figure as SVG or PNG, by the ending of ``path``; the same figure gives the same SVG on any day."""
    figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)

"""Figures drawn with matplotlib, for files and inside pages: the one place that imports it.

Inside a page a figure is inline SVG that takes the page's colours, text font and theme, scales to the width there is,
and says at a mark what `tip` gave it. The same figure gives the same SVG on any day.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from sandtable.errors import missing_extra
from sandtable.table import Table
from sandtable.units import format_si

# Okabe and Ito's colours, which the colour-blind can tell apart: predicted is the first, measured the second
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vP"
MOST_SERIES = len(COLOURS)
PREDICTED, MEASURED = COLOURS[:2]
REST, GRID, INK = "#999999", "#E6E6E6", "#000000"
# one column of a telephone; a page on a desk shows two or three of them side by side, and larger
WIDTH_IN = 4.3
LONG_TICK, FEWEST_TICKS, MOST_TICKS = 10_000, 3, 6

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "sandtable",
    "text.parse_math": False,
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_PAGE_COLOURS = {colour.lower(): f"var(--c{index})" for index, colour in enumerate(COLOURS)} | {
    REST: "var(--rest)",
    GRID.lower(): "var(--grid)",
    INK: "currentColor",
}
_COLOUR = re.compile("|".join(_PAGE_COLOURS))
_FONT = re.compile(r"font-family: [^;]*;? ?")
_SVG, _XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
_TIP = "tip:"


def new_figure(width_in: float, height_in: float, title: str = "", *, title_size: float | str = "large") -> Any:
    """Return an empty matplotlib figure, its sizes in inches.

    Raises:
        NoDevice: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise missing_extra("matplotlib", "report") from None
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    if title:
        figure.suptitle(title, fontsize=title_size)
    return figure


def one_axis(height_in: float, *, x: str = "", y: str = "", grid: str = "both") -> tuple[Any, Any]:
    """Return a figure as wide as a column of a page, and its only axes, with names of what lies along them."""
    figure = new_figure(WIDTH_IN, height_in)
    axis = figure.subplots()
    axis.set(xlabel=x, ylabel=y)
    axis.grid(visible=True, axis=grid, color=GRID, linewidth=0.6)
    axis.set_axisbelow(True)
    return figure, axis


def save(figure: Any, path: Path) -> None:
    """Write a figure as SVG or PNG, by the ending of ``path``; the same figure gives the same SVG on any day."""
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": "sandtable"}):
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)


def look(index: int) -> dict[str, str]:
    """Return colour and marker of a series by its place; two series never share both."""
    n = len(COLOURS)
    return {"color": COLOURS[index % n], "marker": MARKERS[(index + index // n) % n]}


def tip(artist: Any, text: str) -> None:
    """Say ``text`` where a reader of a page points at a mark."""
    artist.set_gid(f"{_TIP}{text}")


def legend_below(figure: Any, columns: int = 3) -> None:
    """Name the series under the plot, where the names take nothing from it."""
    handles, names = figure.axes[0].get_legend_handles_labels()
    if names:
        figure.legend(handles, names, loc="outside lower center", ncols=min(columns, len(names)))


def tick_text(value: float) -> str:
    """Return a number of an axis as people write it: 0.05, 64, 160 M; never a power of ten."""
    return f"{value:.6g}" if 1e-3 <= abs(value) < LONG_TICK or not value else format_si(value, "").strip()


def log_axis(axis: Any, which: str, ends: Sequence[float], text: Callable[[float], str] = tick_text) -> None:
    """Make an axis ("x" or "y") logarithmic over positive ``ends``, with a few round ticks that are written out."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    low, high = min(ends), max(ends)
    axis.set(**{f"{which}scale": "log", f"{which}lim": (low, high)})
    own = getattr(axis, f"{which}axis")
    own.set_minor_locator(NullLocator())
    own.set_major_locator(FixedLocator(_round_steps(low, high)))
    own.set_major_formatter(FuncFormatter(lambda value, _: text(value)))


def _round_steps(low: float, high: float) -> list[float]:
    """Return three to six round numbers between two, powers of ten if there are enough of them."""
    from matplotlib.ticker import MaxNLocator

    for leading in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        steps = [lead * 10.0**e for e in range(-15, 19) for lead in leading]
        within = [step for step in steps if low <= step <= high]
        if len(within) >= FEWEST_TICKS:
            return within[:: -(-len(within) // MOST_TICKS)]
    return [step for step in map(float, MaxNLocator(4).tick_values(low, high)) if low <= step <= high]


def inline(draw: Callable[[Table], Any], data: Table, label: str, prefix: str) -> str:
    """Return what ``draw`` makes of ``data`` as SVG to stand inside a page.

    Args:
        draw: Returns a matplotlib figure.
        data: What is drawn.
        label: What a screen reader says in place of the picture.
        prefix: Begins every id in it, so that no two figures of a page share one.

    Raises:
        NoDevice: matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
    except ImportError:
        raise missing_extra("matplotlib", "report") from None
    stream = io.StringIO()
    with rc_context(_STYLE):
        draw(data).savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    return _for_page(stream.getvalue(), label, prefix)


def _for_page(text: str, label: str, prefix: str) -> str:
    """Return matplotlib's SVG without what belongs to a file: sizes, fonts, metadata, a style sheet, needless ids."""
    root = ElementTree.fromstring(text)
    for child in list(root):
        if child.tag == f"{_SVG}metadata" or child.find(f"{_SVG}style") is not None:
            root.remove(child)
    for element in root.iter():
        _clean(element, prefix)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib |= {"role": "img", "aria-label": label, "fill": "currentColor"}
    return re.sub(r"\s*\n\s*", " ", ElementTree.tostring(root, encoding="unicode"))


def _clean(element: ElementTree.Element, prefix: str) -> None:
    """Take one element of an SVG file into a page: its ids begin with the prefix, its colours are the page's."""
    element.tag = element.tag.removeprefix(_SVG)
    attributes = element.attrib
    name = attributes.pop("id", "")
    if name.startswith(_TIP):
        title = ElementTree.Element("title")
        title.text = name.removeprefix(_TIP)
        element.insert(0, title)
    elif name and element.tag in ("path", "clipPath"):  # nothing refers to the groups, which have ids too
        attributes["id"] = prefix + name
    target = attributes.pop(f"{_XLINK}href", "")
    if target:
        attributes["href"] = target.replace("#", f"#{prefix}")
    if "clip-path" in attributes:
        attributes["clip-path"] = attributes["clip-path"].replace("#", f"#{prefix}")
    if "style" in attributes:
        attributes["style"] = _COLOUR.sub(lambda m: _PAGE_COLOURS[m[0]], _FONT.sub("", attributes["style"]))

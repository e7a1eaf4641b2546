"""What the paper claims of accuracy, beside networks that were trained here: small ones, on rendered characters."""

from __future__ import annotations

from typing import Any

from sandtable.studies.finding import Finding
from sandtable.table import Table
from sandtable_workloads.butterfly.executed import glyph_study
from sandtable_workloads.butterfly.executed.glyph_study import BUDGETS, COMPARED, Row
from sandtable_workloads.butterfly.networks import NETWORKS
from sandtable_workloads.butterfly.published.networks_compared import pairs

GLYPHS = "six blocks on glyphs, trained here"


def finding() -> Finding:
    """Return whether wide butterflies read better than narrow dense networks, each seed against the same seed."""
    rows = {(row.budget, row.case): row for row in glyph_study.table(glyph_study.committed())}
    butterflies = [rows[budget, "butterfly"] for budget in BUDGETS]
    gains = [pair.butterfly.top1_frac - pair.dense.top1_frac for pair in pairs()]
    columns = ("panel", "series", "x", "y")
    return Finding(
        name="equal_multiply_adds_accuracy",
        claim="At equal multiply-adds a wide butterfly network is more accurate than the narrow dense one",
        holds=all(row.wins for row in butterflies),
        evidence=(
            f"{', '.join(map(_gain, butterflies))}; the paper's on ImageNet {100 * min(gains):.1f} to "
            f"{100 * max(gains):.1f} points. Six blocks on rendered characters say little of ImageNet"
        ),
        data=Table(columns=columns, rows=[*_here(rows), *_theirs()]),
        x="million multiply-adds",
        y="test images read right (%)",
        log_y=False,
    )


def _gain(row: Row) -> str:
    within = f"{100 * row.gain_low:+.1f} to {100 * row.gain_high:+.1f}"
    return (
        f"{100 * row.gain:+.1f} points ({within}, 90 %, {row.n} seeds) at {row.multiply_accumulates / 1e6:.2f} "
        "million"
    )


def _here(rows: dict[tuple[str, str], Row]) -> list[list[Any]]:
    return [
        [GLYPHS, structure.replace("_", " "), row.multiply_accumulates / 1e6, 100 * row.accuracy]
        for structure in COMPARED
        for budget in BUDGETS
        if (row := rows.get((budget, structure)))
    ]


def _theirs() -> list[list[Any]]:
    return [
        [
            f"{NETWORKS[network.network].title} on ImageNet, as published",
            network.structure,
            pair.budget,
            100 * network.top1_frac,
        ]
        for pair in pairs()
        for network in (pair.dense, pair.butterfly)
    ]

"""Where the time of a network goes beside its multiply-adds, what it holds, and which base is fastest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from sandtable.studies.evaluate import predictions
from sandtable.studies.finding import Finding
from sandtable.studies.study import Study
from sandtable.table import Table
from sandtable_workloads.butterfly.networks import Network, network_named
from sandtable_workloads.butterfly.published.networks_compared import MACHINES, images

NETWORK = "mobilenet_v1"
RESOLUTIONS = (128, 160, 192, 224)
WIDTHS = (0.25, 0.5, 1.0, 2.0)
# the two networks of the paper's figure of shares: width by structure
SHOWN = {"dense": 1.0, "butterfly": 2.0}
PHONE = "phone CPU"
KINDS = {"pointwise": ("pointwise",), "depthwise": ("depthwise",), "norm, activation": ("norm", "activation")}
REST = "all else"
ALIKE = 0.1
BASES = (2, 4, 8, 16)
# the paper compares bases at about this many multiply-adds and this side
BUDGET, SIDE = 40e6, 160
MEMORY_GAIN, MEMORY_SPREAD = 4.0, 1.3


def findings() -> list[Finding]:
    """Return what the paper says of its networks' parts, their memory and the base, beside what is predicted."""
    return [_shares(), _memory(), _bases()]


def _grouped(by_kind: Mapping[str, float]) -> dict[str, float]:
    """Return the share of each of `KINDS`, and of the rest."""
    total = sum(by_kind.values())
    found = {group: sum(by_kind.get(kind, 0.0) for kind in kinds) / total for group, kinds in KINDS.items()}
    return found | {REST: 1 - sum(found.values())}


@lru_cache(maxsize=1)
def shares() -> dict[tuple[str, str, float], dict[str, float]]:
    """Return shares by group of multiply-adds and of time, by what they are of, structure and width."""
    cases = [{"width": width, "structure": structure} for structure in SHOWN for width in WIDTHS]
    study = Study.model_validate(
        {
            "name": "butterfly_shares",
            "workload": "butterfly_vision",
            "machine": MACHINES[PHONE]["machine"],
            "parameters": {"network": NETWORK, "resolution": 224, "steps": 1},
            "cases": cases,
        }
    )
    found = {}
    for case, foreseen in zip(cases, predictions(study), strict=True):
        network = network_named(NETWORK, resolution=224, **case)  # type: ignore[arg-type]
        counted = {str(kind): float(n) for kind, n in network.multiply_accumulates_by_kind(as_paper=True).items()}
        key = str(case["structure"]), float(case["width"])  # type: ignore[arg-type]
        found[("multiply-adds", *key)] = _grouped(counted)
        found[("time", *key)] = _grouped(foreseen.prediction.by_op)
    return found


def _shares() -> Finding:
    rows = [
        [f"{structure}: {what}", group, width, share]
        for (what, structure, width), by_group in shares().items()
        for group, share in by_group.items()
        if share > 0
    ]
    apart, told = [], []
    for group in ("pointwise", "depthwise"):
        counted, timed = (
            [shares()[what, structure, width][group] for structure, width in SHOWN.items()]
            for what in ("multiply-adds", "time")
        )
        apart += [abs(c - t) for c, t in zip(counted, timed, strict=True)]
        told.append(f"{group} {_change(counted)} of multiply-adds and {_change(timed)} of time")
    return Finding(
        name="shares",
        claim="With a butterfly, pointwise layers fall from 95 to 60 % of the multiply-adds, and of the time as well",
        holds=max(apart) < ALIKE,
        evidence=f"on the phone, from MobileNetV1 1.0 to the butterfly of 2.0 at 224 pixels: {'; '.join(told)}",
        data=_table(f"Shares of MobileNetV1 at 224 pixels, time on a {PHONE}", rows),
        x="width",
        y="share",
        log_y=False,
    )


def _change(shares: Sequence[float]) -> str:
    return " to ".join(f"{100 * share:.0f}" for share in shares) + " %"


def _working_bytes(network: Network) -> float:
    """Return the bytes of activations that a forward pass of one image needs at once, in float32."""
    return 4.0 * network.peak_elements


def _memory() -> Finding:
    compared = {
        "dense 0.5": ("dense", 0.5),
        "butterfly 1.0": ("butterfly", 1.0),
        "butterfly 2.0": ("butterfly", 2.0),
    }
    found = {
        label: [
            _working_bytes(network_named(NETWORK, width=width, resolution=side, structure=structure))
            for side in RESOLUTIONS
        ]
        for label, (structure, width) in compared.items()
    }
    gain = found["butterfly 2.0"][-1] / found["dense 0.5"][-1]
    megabytes = {label: each[-1] / 1e6 for label, each in found.items()}
    return Finding(
        name="working_memory",
        claim="MobileNetV1 2.0 with butterflies needs about four times the working memory of the dense 0.5",
        holds=MEMORY_GAIN / MEMORY_SPREAD <= gain <= MEMORY_GAIN * MEMORY_SPREAD,
        evidence=f"{gain:.1f} times: " + ", ".join(f"{label} {size:.1f} MB" for label, size in megabytes.items()),
        data=_table(
            "Activations of one image that are needed at once",
            [["", s, side, y / 1e6] for s, ys in found.items() for side, y in zip(RESOLUTIONS, ys, strict=True)],
            "MB",
        ),
        x="pixels of a side",
        y="MB",
    )


def width_of_budget(base: int) -> float:
    """Return the width at which MobileNetV1 of that base has `BUDGET` multiply-adds, to a hundredth."""
    low, high = 5, 400
    while high - low > 1:
        middle = (low + high) // 2
        network = network_named(NETWORK, width=middle / 100, resolution=SIDE, structure="butterfly", base=base)
        low, high = (middle, high) if network.multiply_accumulates() <= BUDGET else (low, middle)
    return low / 100


def _bases() -> Finding:
    cases = [
        {
            "network": NETWORK,
            "structure": "butterfly",
            "base": base,
            "width": width_of_budget(base),
            "resolution": SIDE,
        }
        for base in BASES
    ]
    times = {on: [1e3 * image.seconds for image in images(on, cases)] for on in MACHINES}
    fastest = {on: BASES[each.index(min(each))] for on, each in times.items()}
    widths = ", ".join(f"{case['base']} at width {case['width']}" for case in cases)
    return Finding(
        name="best_base",
        claim="Base 4, the most accurate at equal multiply-adds, is the fastest too",
        holds=all(base == 4 for base in fastest.values()),
        evidence=f"fastest at 40 million: {', '.join(f'{on} {base}' for on, base in fastest.items())} (bases {widths})",
        data=_table(
            "Butterfly networks of 40 million multiply-adds",
            [["", on, base, y] for on, ys in times.items() for base, y in zip(BASES, ys, strict=True)],
            "ms",
        ),
        x="base",
        y="ms an image",
    )


def _table(title: str, rows: Sequence[Sequence[Any]], y_unit: str = "") -> Table:
    return Table(columns=("panel", "series", "x", "y"), units=("", "", "", y_unit), rows=rows, title=title)

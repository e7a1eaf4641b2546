"""The findings of "Computational Bottlenecks of Training Small-scale Language Models" (arXiv 2410.19456), predicted.

Every point is the best over whatever its axes leave open, as in the paper: GPU type, number of GPUs, sequences per GPU,
communication. Whether a finding holds is decided from these predictions alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from sandtable.studies.finding import Finding, Findings
from sandtable.table import Table
from sandtable_workloads.training.published.slm_paper_grid import Frame, cells, labels, machine_of, outcome, prices
from sandtable_workloads.transformer.presets import shape_named

SPEED = "tokens/s per A100-40GB of price"
BATCH = "sequences per step"
LARGEST_BATCH = 1024
LATEST = "H100-80GB"
# several GPUs of one machine of eight are compared as the paper does, at their best
MACHINES = {2: 1, 4: 1, 8: 1, 16: 2, 32: 4, 64: 8}
# what "far below", "levels off" and "before memory is full" are taken to mean; the paper gives no figures
FAR_BELOW = 4
NEARLY = 0.9
HALF = 0.5


class SlmPaperFindings(Findings):
    """Eight findings of the paper, from the speeds and the memory of its grid."""

    name: ClassVar[str] = "slm_training"

    def findings(self) -> Sequence[Finding]:
        """Return the paper's findings with the data of their figures, and whether the prediction has them too."""
        found = cells()
        found = found[found["batch"] <= LARGEST_BATCH]
        flash = found[found["attention"] == "flash"]
        gains = _gains(found)
        ranked = cells()[cells()["attention"] == "flash"]
        return (
            _flash_gain(gains),
            _flash_by_size(gains),
            _gpu_ranking(ranked),
            _gpu_ranking_today(ranked),
            _ddp_fsdp(ranked[ranked["gpu"] == "A100-80GB"]),
            _peak_batch(flash),
            _saturation(
                flash[(flash["gpu"] == "A100-80GB") & (flash["devices"] == 1) & (flash["sharding"] == "ddp")]
            ),
            _out_of_memory(found),
        )


def _best(found: Frame, *axes: str, by: str = "speed") -> Frame:
    """Return the best over all but the given axes, the last of which lies across."""
    return found.groupby(list(axes), observed=True)[by].max().unstack()


def _rows(table: Frame, panel: str = "") -> list[list[Any]]:
    """Return a table of models by batches as rows of a figure with one panel, without those of nothing that fits."""
    return [[panel, model, x, float(y)] for model, row in table.iterrows() for x, y in row.items() if y > 0]


def _table(title: str, rows: Sequence[Sequence[Any]], y_unit: str = "") -> Table:
    return Table(columns=("panel", "series", "x", "y"), units=("", "", "", y_unit), rows=rows, title=title)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _gains(found: Frame) -> list[list[Any]]:
    """Return by model and batch the best speed with FlashAttention over the best without."""
    best = _best(found[found["batch"] >= 16], "model", "batch", "attention")
    return _rows((best["flash"] / best["vanilla"])[best["vanilla"] > 0].unstack())


def _flash_gain(rows: list[list[Any]]) -> Finding:
    gains = [row[3] for row in rows]
    return Finding(
        name="flash_gain",
        claim="FlashAttention is faster than vanilla attention for every model and batch",
        holds=all(gain > 1 for gain in gains),
        evidence=f"gains of {min(gains):.2f} to {max(gains):.2f}",
        data=_table("Speed with FlashAttention over vanilla attention", rows),
        x=BATCH,
        y="gain",
        log_y=False,
        mark=1.0,
    )


def _flash_by_size(rows: list[list[Any]]) -> Finding:
    means = {model: _mean([row[3] for row in rows if row[1] == model]) for model in labels("model")}
    ordered = list(means.values())
    sizes = {point.labels["model"]: point.changes["model"] for point in outcome().points}
    points = [["", "mean over batches", shape_named(sizes[m]).n_params, gain] for m, gain in means.items()]
    return Finding(
        name="flash_gain_by_size",
        claim="FlashAttention gains more on small models than on large ones",
        holds=ordered[0] > ordered[-1],
        evidence="mean gain " + ", ".join(f"{model} {gain:.2f}" for model, gain in means.items()),
        data=_table("Mean gain of FlashAttention by model size", points),
        x="parameters",
        y="gain",
        log_y=False,
    )


def _by_gpu(flash: Frame, worth: str) -> tuple[list[list[Any]], int, int]:
    """Return rows by model, GPU type and number of GPUs, how often the H100 is last, and of how many comparisons."""
    best = _best(flash, "model", "devices", "gpu", by=worth)
    rows = [
        [model, gpu, devices, float(value)]
        for (model, devices), row in best.iterrows()
        for gpu, value in row.items()
        if value > 0
    ]
    return rows, int((best.idxmin(axis=1) == LATEST).sum()), len(best)


def _gpu_ranking(flash: Frame) -> Finding:
    rows, last, columns = _by_gpu(flash, "speed")
    _, steadily, _ = _by_gpu(flash, "steady")
    return Finding(
        name="gpu_ranking",
        claim="An H100 brings less per dollar than an A100, for most models and numbers of GPUs",
        holds=last > columns / 2,
        evidence=f"the H100 is last in {last} of {columns} comparisons over ten steps; in {steadily} once warm",
        data=_table("Speed for the same money by GPU type", rows, "tokens/s"),
        x="GPUs",
        y=SPEED,
    )


def _gpu_ranking_today(flash: Frame) -> Finding:
    machines = {gpu: machine_of(gpu) for gpu in labels("gpu")}
    # tokens per dollar of a GPU's hour, from a speed over the paper's ratio
    factor = {
        gpu: prices()[gpu] * 3600 * m.accelerator.n / m.price.usd_per_h
        for gpu, m in machines.items()
        if m.price is not None and m.accelerator is not None
    }
    worth = flash.assign(worth=flash["steady"] * flash["gpu"].map(factor).astype(float))
    rows, last, columns = _by_gpu(worth, "worth")
    shown = ", ".join(f"{gpu} {prices()[gpu] * 3600 / factor[gpu]:.2f}" for gpu in factor)
    return Finding(
        name="gpu_ranking_today",
        claim="The same at the prices in the machine files and once warm: an H100 brings less per dollar",
        holds=last > columns / 2,
        evidence=f"at {shown} USD per hour the H100 is last in {last} of {columns} comparisons",
        data=_table("Tokens per dollar by GPU type, at prices of the machine files", rows, "tokens/USD"),
        x="GPUs",
        y="tokens/USD",
    )


def _ddp_fsdp(flash: Frame) -> Finding:
    several = flash[flash["devices"] > 1]
    best = _best(several.assign(machines=several["devices"].map(MACHINES)), "model", "machines", "sharding")
    rows = [
        [model, sharding, machines, float(speed)]
        for (model, machines), row in best.iterrows()
        for sharding, speed in row.items()
    ]
    lead = best["ddp"] / best[["fsdp_full", "fsdp_grad_op"]].max(axis=1)
    means = {model: _mean([float(v) for v in lead[model][lead[model].index > 1]]) for model in labels("model")}
    return Finding(
        name="ddp_fsdp",
        claim="Between machines DDP is fastest for the small models, and loses its lead with the 2B model",
        holds=min(means["100M"], means["500M"]) > 1 and means["2B"] < min(means["100M"], means["500M"]),
        evidence="DDP over the better FSDP: " + ", ".join(f"{model} {value:.2f}" for model, value in means.items()),
        data=_table("Speed by communication on A100s with 80 GB", rows, "tokens/s"),
        x="machines of eight",
        y=SPEED,
        log_y=False,
    )


def _peak_batch(flash: Frame) -> Finding:
    best = _best(flash, "model", "batch")
    peaks = best.idxmax(axis=1)
    most = {model: int(row[row > 0].index.max()) for model, row in best.iterrows()}
    shown = ", ".join(f"{model} {peak}" for model, peak in peaks.items())
    return Finding(
        name="peak_batch",
        claim="Speed for the same money peaks at a batch far below the largest that fits",
        holds=all(FAR_BELOW * peak <= most[model] for model, peak in peaks.items()),
        evidence=f"peaks at {shown} of up to {max(most.values())} sequences per step",
        data=_table("Best speed for the same money by batch", _rows(best), "tokens/s"),
        x=BATCH,
        y=SPEED,
    )


def _saturation(alone: Frame) -> Finding:
    """Return where speed levels off on one and the same GPU; without the first step, whose cost batches share out."""
    rows: list[list[Any]] = []
    enough: dict[str, float] = {}
    for model, own in alone[alone["speed"] > 0].groupby("model", observed=True):
        relative = own["steady"] / own["steady"].max()
        for panel, share in (("memory used", own["memory_frac"]), ("speed over the best", relative)):
            rows += [[panel, model, batch, float(y)] for batch, y in zip(own["batch"], share, strict=True)]
        enough[str(model)] = float(own["memory_frac"][own["steady"] >= NEARLY * own["steady"].max()].iloc[0])
    shares = ", ".join(f"{model} {100 * share:.0f} %" for model, share in enough.items())
    return Finding(
        name="saturation",
        claim="On the same GPU, speed levels off before half its memory is used",
        holds=all(share < HALF for share in enough.values()),
        evidence=f"{100 * NEARLY:.0f} % of the best speed once warm at {shares} of an A100's 80 GB",
        data=_table("Speed and memory by batch on one A100 with 80 GB", rows),
        x=BATCH,
        y="share",
        log_y=False,
        mark=1.0,
    )


def _out_of_memory(found: Frame) -> Finding:
    axes = ["attention", "sharding", "model", "batch"]
    leanest = found[found["batch"] >= 16].groupby(axes, observed=True)["memory_frac"].min()
    rows = [[f"{a}, {s}", model, batch, float(y)] for (a, s, model, batch), y in leanest.items()]
    largest = found[(found["batch"] == LARGEST_BATCH) & (found["speed"] > 0)]

    def fits(model: str, attention: str, *sharding: str) -> bool:
        own = largest[(largest["model"] == model) & (largest["attention"] == attention)]
        return bool(len(own[own["sharding"].isin(sharding)] if sharding else own))

    pattern = {
        "vanilla 1B fails": not fits("1B", "vanilla"),
        "vanilla 2B fails": not fits("2B", "vanilla"),
        "FlashAttention 1B runs": fits("1B", "flash"),
        "DDP 2B fails": not fits("2B", "flash", "ddp"),
        "FSDP 2B runs": fits("2B", "flash", "fsdp_full"),
    }
    return Finding(
        name="out_of_memory",
        claim="At 1024 sequences per step vanilla attention runs out of memory from 1B on, and DDP with the 2B model",
        holds=all(pattern.values()),
        evidence=", ".join(f"{case}: {'yes' if holds else 'no'}" for case, holds in pattern.items()),
        data=_table("Memory of the leanest configuration over what a GPU has", rows),
        x=BATCH,
        y="share of a GPU's memory",
        mark=1.0,
    )

"""The findings of "Computational Bottlenecks of Training Small-scale Language Models" (arXiv 2410.19456), predicted.

Every point is the best over whatever its axes leave open, as in the paper: GPU type, number of GPUs, sequences per GPU,
communication. Speed is tokens per second and GPU over the GPU's price beside an A100 with 40 GB, the paper's unit.
Whether a finding holds is decided from these predictions alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from sandtable import yaml_files
from sandtable.hardware import Machine, library
from sandtable.table import Table
from sandtable.workload.seam import Finding
from sandtable_workloads.training import training_memory
from sandtable_workloads.training.training_parameters import SlmTraining
from sandtable_workloads.transformer.presets import shape_named

GRID = Path(__file__).parent / "findings.yaml"
SPEED = "tokens/s per A100-40GB of price"
BATCH = "sequences per step"
# what "far below", "levels off" and "before memory is full" are taken to mean; the paper gives no figures
FAR_BELOW = 4
NEARLY = 0.9
HALF = 0.5
ManyBytes = Callable[[Sequence[SlmTraining], Machine], list[dict[str, float]]]
ManyTimes = Callable[[Sequence[SlmTraining], Machine], list[dict[str, float]]]


@lru_cache(maxsize=1)
def grid() -> dict[str, Any]:
    """Return the paper's grid as plain data."""
    found: dict[str, Any] = yaml_files.plain(yaml_files.read_yaml(GRID))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One configuration of the grid: how much of a GPU's memory it needs, and its speed, 0 where it does not fit.

    ``speed`` is that of the paper's ten steps, ``steady`` without what only the first of them takes; both in tokens
    per second and GPU over the GPU's price beside an A100 with 40 GB.
    """

    model: str
    attention: str
    gpu: str
    devices: int
    sharding: str
    batch: int
    memory_frac: float
    speed: float
    steady: float

    @property
    def fits(self) -> bool:
        """Whether it runs."""
        return self.speed > 0


def cells(memories: ManyBytes, estimate: ManyTimes) -> list[Cell]:
    """Return every configuration of the grid, predicted."""
    found: list[Cell] = []
    for gpu, name in grid()["machines"].items():
        machine = library.load_machine(name, {"stack": grid()["stack"]})
        for model, attention in itertools.product(grid()["models"], grid()["attention"]):
            runs = _runs(model, attention)
            needed = [_memory_frac(held, machine) for held in memories(runs, machine)]
            fitting = [p for p, share in zip(runs, needed, strict=True) if share <= 1]
            warm = [p.model_copy(update={"warmup_steps": 1}) for p in fitting]
            times = zip(estimate(fitting, machine), estimate(warm, machine), strict=True)
            for p, share in zip(runs, needed, strict=True):
                cold, steady = (t["step_s"] for t in next(times)) if share <= 1 else (math.inf, math.inf)
                work = p.micro_batch * p.sequence_tokens / grid()["price"][gpu]
                found.append(
                    Cell(
                        model=model,
                        attention=attention,
                        gpu=gpu,
                        devices=p.devices,
                        sharding=p.sharding,
                        batch=p.global_batch,
                        memory_frac=share,
                        speed=work / cold,
                        steady=work / steady,
                    )
                )
    return found


def _runs(model: str, attention: str) -> list[SlmTraining]:
    axes = itertools.product(grid()["devices"], grid()["micro_batch"], grid()["sharding"])
    return [
        SlmTraining.model_validate(
            grid()["parameters"]
            | {
                "model": grid()["models"][model],
                "attention": attention,
                "devices": devices,
                "micro_batch": micro_batch,
                "sharding": sharding,
                # the paper's FSDP is one unit, which is gathered and scattered beside nothing
                "overlap_gradients": sharding == "ddp",
            }
        )
        for devices, micro_batch, sharding in axes
    ]


def _memory_frac(held: dict[str, float], machine: Machine) -> float:
    return sum(held.values()) / training_memory.capacity_bytes(machine, 1)


def findings(memories: ManyBytes, estimate: ManyTimes) -> tuple[Finding, ...]:
    """Return the paper's findings with the data of their figures, and whether the prediction has them too."""
    found = cells(memories, estimate)
    makers = (
        _flash_gain,
        _flash_by_size,
        _gpu_ranking,
        _gpu_ranking_today,
        _ddp_fsdp,
        _peak_batch,
        _saturation,
        _out_of_memory,
    )
    return tuple(make(found) for make in makers)


# --- picking -------------------------------------------------------------------------------------------------------


def _pick(found: Iterable[Cell], **wanted: Any) -> list[Cell]:
    return [cell for cell in found if all(getattr(cell, name) == value for name, value in wanted.items())]


def _best(found: Iterable[Cell]) -> float:
    """Return the best speed, 0 where nothing fits."""
    return max((cell.speed for cell in found), default=0.0)


def _batches(found: Iterable[Cell], *, least: int = 0) -> list[int]:
    return sorted({cell.batch for cell in found if least <= cell.batch <= 1024})


def _table(title: str, rows: Sequence[Sequence[Any]], y_unit: str = "") -> Table:
    return Table(columns=("panel", "series", "x", "y"), units=("", "", "", y_unit), rows=rows, title=title)


# --- the findings ----------------------------------------------------------------------------------------------------


def _flash_gain(found: list[Cell]) -> Finding:
    rows = _gains(found)
    return Finding(
        name="flash_gain",
        claim="FlashAttention is faster than vanilla attention for every model and batch",
        holds=all(row[3] > 1 for row in rows),
        evidence=f"gains of {min(row[3] for row in rows):.2f} to {max(row[3] for row in rows):.2f}",
        data=_table("Speed with FlashAttention over vanilla attention", rows),
        x=BATCH,
        y="gain",
        log_y=False,
        mark=1.0,
    )


def _gains(found: list[Cell]) -> list[list[Any]]:
    """Return rows of a table: by model and batch, the best speed with FlashAttention over the best without."""
    rows: list[list[Any]] = []
    for model in grid()["models"]:
        own = _pick(found, model=model)
        for batch in _batches(own, least=16):
            flash, vanilla = (_best(_pick(own, batch=batch, attention=a)) for a in ("flash", "vanilla"))
            if vanilla:
                rows.append(["all", model, batch, flash / vanilla])
    return rows


def _flash_by_size(found: list[Cell]) -> Finding:
    means: dict[str, float] = {}
    for model in grid()["models"]:
        own = [row[3] for row in _gains(found) if row[1] == model]
        means[model] = sum(own) / len(own)
    ordered = list(means.values())
    rows = [["all", "mean over batches", shape_named(grid()["models"][m]).n_params, g] for m, g in means.items()]
    return Finding(
        name="flash_gain_by_size",
        claim="FlashAttention gains more on small models than on large ones",
        holds=ordered[0] > ordered[-1],
        evidence="mean gain " + ", ".join(f"{model} {gain:.2f}" for model, gain in means.items()),
        data=_table("Mean gain of FlashAttention by model size", rows),
        x="parameters",
        y="gain",
        log_y=False,
    )


def _gpu_ranking(found: list[Cell]) -> Finding:
    rows, last, columns = _by_gpu(found, lambda cell: cell.speed)
    _, steadily, _ = _by_gpu(found, lambda cell: cell.steady)
    return Finding(
        name="gpu_ranking",
        claim="An H100 brings less per dollar than an A100, for most models and numbers of GPUs",
        holds=last > columns / 2,
        evidence=f"the H100 is last in {last} of {columns} comparisons over ten steps; in {steadily} once warm",
        data=_table("Speed for the same money by GPU type", rows, "tokens/s"),
        x="GPUs",
        y=SPEED,
    )


def _gpu_ranking_today(found: list[Cell]) -> Finding:
    machines = {gpu: library.load_machine(name) for gpu, name in grid()["machines"].items()}
    # tokens per dollar of a GPU's hour, from a speed over the paper's ratio
    factor = {
        gpu: grid()["price"][gpu] * 3600 * m.accelerator.n / m.price.usd_per_h
        for gpu, m in machines.items()
        if m.price is not None and m.accelerator is not None
    }
    rows, last, columns = _by_gpu(found, lambda cell: cell.steady * factor[cell.gpu])
    prices = ", ".join(f"{gpu} {grid()['price'][gpu] * 3600 / factor[gpu]:.2f}" for gpu in factor)
    return Finding(
        name="gpu_ranking_today",
        claim="The same at the prices in the machine files and once warm: an H100 brings less per dollar",
        holds=last > columns / 2,
        evidence=f"at {prices} USD per hour the H100 is last in {last} of {columns} comparisons",
        data=_table("Tokens per dollar by GPU type, at prices of the machine files", rows, "tokens/USD"),
        x="GPUs",
        y="tokens/USD",
    )


def _by_gpu(found: list[Cell], worth: Callable[[Cell], float]) -> tuple[list[list[Any]], int, int]:
    """Return rows by model, GPU type and number of GPUs, how often the H100 is last, and of how many comparisons."""
    rows: list[list[Any]] = []
    last = 0
    columns = list(itertools.product(grid()["models"], grid()["devices"]))
    flash = _pick(found, attention="flash")
    for model, devices in columns:
        own = _pick(flash, model=model, devices=devices)
        best = {gpu: max((worth(c) for c in _pick(own, gpu=gpu)), default=0.0) for gpu in grid()["machines"]}
        rows += [[model, gpu, devices, value] for gpu, value in best.items() if value]
        last += min(best, key=lambda gpu: best[gpu]) == "H100-80GB"
    return rows, last, len(columns)


def _ddp_fsdp(found: list[Cell]) -> Finding:
    rows: list[list[Any]] = []
    lead: dict[str, list[float]] = {}
    flash = _pick(found, attention="flash", gpu="A100-80GB")
    for model in grid()["models"]:
        # one machine holds eight; several GPUs of one are compared as the paper does, at their best
        for machines, counts in ((1, (2, 4, 8)), (2, (16,)), (4, (32,)), (8, (64,))):
            own = [cell for cell in _pick(flash, model=model) if cell.devices in counts]
            speeds = {sharding: _best(_pick(own, sharding=sharding)) for sharding in grid()["sharding"]}
            rows += [[model, sharding, machines, speed] for sharding, speed in speeds.items()]
            if machines > 1:
                lead.setdefault(model, []).append(speeds["ddp"] / max(speeds["fsdp_full"], speeds["fsdp_grad_op"]))
    means = {model: sum(values) / len(values) for model, values in lead.items()}
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


def _peak_batch(found: list[Cell]) -> Finding:
    rows: list[list[Any]] = []
    holds, peaks = True, []
    most = 0
    for model in grid()["models"]:
        own = _pick(found, model=model, attention="flash")
        speeds = {batch: _best(_pick(own, batch=batch)) for batch in _batches(own)}
        rows += [["all", model, batch, speed] for batch, speed in speeds.items() if speed]
        peak = max(speeds, key=lambda batch: speeds[batch])
        most = max(batch for batch, speed in speeds.items() if speed)
        holds = holds and FAR_BELOW * peak <= most
        peaks.append(f"{model} {peak}")
    return Finding(
        name="peak_batch",
        claim="Speed for the same money peaks at a batch far below the largest that fits",
        holds=holds,
        evidence="peaks at " + ", ".join(peaks) + f" of up to {most} sequences per step",
        data=_table("Best speed for the same money by batch", rows, "tokens/s"),
        x=BATCH,
        y=SPEED,
    )


def _saturation(found: list[Cell]) -> Finding:
    """Return where speed levels off on one and the same GPU; without the first step, whose cost batches share out."""
    rows: list[list[Any]] = []
    enough: dict[str, float] = {}
    for model in grid()["models"]:
        own = _pick(found, model=model, attention="flash", gpu="A100-80GB", devices=1, sharding="ddp")
        fitting = sorted((cell for cell in own if cell.fits), key=lambda cell: cell.batch)
        best = max(cell.steady for cell in fitting)
        rows += [["memory used", model, cell.batch, cell.memory_frac] for cell in fitting]
        rows += [["speed over the best", model, cell.batch, cell.steady / best] for cell in fitting]
        enough[model] = next(cell.memory_frac for cell in fitting if cell.steady >= NEARLY * best)
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


def _out_of_memory(found: list[Cell]) -> Finding:
    rows: list[list[Any]] = []
    for attention, sharding in itertools.product(grid()["attention"], grid()["sharding"]):
        for model in grid()["models"]:
            own = _pick(found, model=model, attention=attention, sharding=sharding)
            for batch in _batches(own, least=16):
                leanest = min(cell.memory_frac for cell in _pick(own, batch=batch))
                rows.append([f"{attention}, {sharding}", model, batch, leanest])

    def fits(model: str, attention: str, *sharding: str) -> bool:
        at_most = _pick(found, model=model, attention=attention, batch=1024)
        return any(cell.fits for cell in at_most if not sharding or cell.sharding in sharding)

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
        y="needed over there",
        mark=1.0,
    )

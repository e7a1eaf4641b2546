"""Tokens per second of llama.cpp on one GPU, as others measured them: dense decode, weights as its files store them.

Predicted with software about which nothing is known (`generic`), so that no constant comes from these rows. Rows whose
model does not fit into the GPU's memory are skipped: what the host then does depends on settings that are not printed.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import ClassVar

from sandtable.hardware import Accelerator, Machine, library
from sandtable.published import systems
from sandtable.published.adapter import Adapter, Outcome, Scored, Skipped
from sandtable.published.rows import Row
from sandtable.results import Metric
from sandtable.runs import predict
from sandtable.workload import scenarios
from sandtable_workloads.flash.dense.weight_types import weight_type
from sandtable_workloads.transformer.presets import preset_for

METRIC = "tokens_per_s"
SCENARIO, MACHINE, SHARED = "run_on_laptop", "desktop_rtx4090", "apple_m1_max_metal"
USUAL_TOKENS = 128  # llama-bench's tg128, where a row does not say


class InferenceLlamacpp(Adapter):
    """llama.cpp on single GPUs."""

    name: ClassVar[str] = "inference_llamacpp"
    title: ClassVar[str] = "llama.cpp: decode on one GPU, weights of 4 to 16 bits"
    metrics: ClassVar[tuple[str, ...]] = (METRIC,)

    def predict(self, row: Row) -> Outcome:
        """Predict one row."""
        measured = row.number("throughput_tokens_per_s")
        if row.text("phase") != "decode" or not measured:
            return Skipped("no tokens per second of decode")
        if row.text("device_count") not in ("1", ""):
            return Skipped("several GPUs")
        device = device_of(row.text("device"))
        if device is None:
            return systems.NO_DEVICE
        model = preset_for(row.text("model"))
        try:
            weights = str(weight_type(row.text("quantization")))
        except ValueError:
            return Skipped("weights of a type that is not named")
        if model is None:
            return Skipped("no such model")
        found = _predicted(device, model, weights, int(row.number("tokens") or USUAL_TOKENS))
        if found is None:
            return Skipped("does not fit into the GPU's memory")
        return [
            Scored(
                row_id=f"line {row.line}",
                metric=METRIC,
                unit=found.unit,
                predicted=found.value,
                low=found.low,
                high=found.high,
                measured=measured,
                label=f"{row.text('device')} {model} {weights}",
                group=row.text("quantization"),
            )
        ]


@lru_cache(maxsize=512)
def device_of(text: str) -> str | None:
    """Return the device file of a GPU that is called as here: ``3090 24GB``, ``Apple M1 Pro 16-core GPU``."""
    known = library.device_files("accelerator")
    apple = re.fullmatch(r"(?:Apple )?(M\d(?: \w+)?) (\d+)[-‑]core GPU.*", text, re.IGNORECASE)
    if apple is not None:
        name = f"apple_{_snake(apple[1])}_gpu"
        if f"{name}_{apple[2]}" in known:
            return f"{name}_{apple[2]}"
        whole = systems.component("accelerator", name)
        return name if isinstance(whole, Accelerator) and whole.datasheet.cores == int(apple[2]) else None
    bare = _snake(re.sub(r"\s*\d+GB$", "", text))
    names = [f"{maker}_{bare}" for maker in ("nvidia", "nvidia_rtx", "amd", "intel")]
    called = systems.named(text)
    return next((name for name in names if name in known), None if called is None else called.name)


def _snake(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


@lru_cache(maxsize=512)
def _predicted(device: str, model: str, weights: str, tokens: int) -> Metric | None:
    changes = {"model": model, "weights": weights, "tokens": tokens, "prompt_tokens": 1, "context": tokens + 1}
    case = scenarios.load(SCENARIO, changes={f"parameters.{name}": value for name, value in changes.items()})
    machine = _machine(device)
    plan = case.workload.plan(case.parameters, machine, case.scenario.seed)
    ops = plan.phase(plan.main_phase).steps[0].ops
    if any(op.on == "host" for op in ops):
        return None
    return predict.predict(case.scenario, case.workload, case.parameters, machine)[0].metrics[METRIC]


@lru_cache(maxsize=64)
def _machine(device: str) -> Machine:
    """Return a machine with that GPU; one that shares the host's memory brings it along."""
    found = systems.component("accelerator", device)
    assert isinstance(found, Accelerator)
    shared = found.shares_host_memory
    machine = library.load_machine(
        SHARED if shared else MACHINE, {"accelerator.device": device, "stack": "generic"}
    )
    return machine.model_copy(update={"memory": found.memory}).wired() if shared else machine

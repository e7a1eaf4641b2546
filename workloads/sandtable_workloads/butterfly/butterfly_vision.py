"""The workload `butterfly_vision`: networks whose pointwise products have structure, planned and run from one list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, get_args

from sandtable import units
from sandtable.demand.plan import Plan
from sandtable.hardware import Frozen, Machine
from sandtable.results import Metric
from sandtable.workload.seam import Execution, ExecutionContext, Verdict, Workload
from sandtable_workloads.butterfly import vision_memory
from sandtable_workloads.butterfly.butterfly_parameters import ButterflyVision, Structure
from sandtable_workloads.butterfly.networks import Layer, describe
from sandtable_workloads.butterfly.vision_plan import plan_of

SECONDS_PER_HOUR = 3600.0


class ButterflyVisionWorkload(Workload[ButterflyVision]):
    """Vision networks, or one layer, with dense, butterfly or other structured matrices: inference and training."""

    name: ClassVar[str] = "butterfly_vision"
    parameters: ClassVar[type[Frozen]] = ButterflyVision
    needs: ClassVar[tuple[str, ...]] = ("torch", "numba")
    example_stack: ClassVar[str | None] = "pytorch_cpu"
    headlines: ClassVar[tuple[str, ...]] = (
        "latency_s.mean",
        "latency_s",
        "images_per_s",
        "rows_per_s",
        "usd_per_million_images",
        "usd_per_million_rows",
    )
    # temporaries of a tiny network are a larger share of its peak than those of a real one
    memory_tolerance_frac: ClassVar[float] = 0.05

    def usual_stack(self, machine: Machine) -> str:
        """See `Workload.usual_stack`: eager PyTorch."""
        return "pytorch_cpu" if machine.accelerator is None else "pytorch_eager"

    def plan(self, parameters: ButterflyVision, machine: Machine, seed: int) -> Plan:
        """Return equal steps of one batch each; see `sandtable_workloads.butterfly.vision_plan`."""
        return plan_of(parameters, machine)

    def subject(self, parameters: ButterflyVision, machine: Machine) -> str:
        """Return the network with its counts, and how much of it a step does."""
        p = parameters
        what = _layer_text(p.built().layers[0]) if p.is_layer else describe(p.built())
        amount = f"{p.n_images} rows" if p.is_layer else f"batch {p.n_images}"
        return f"{what}; {amount}, {p.mode}, {p.precision}"

    def derived(
        self, parameters: ButterflyVision, machine: Machine, known: Mapping[str, Metric]
    ) -> dict[str, Metric]:
        """Return images, or rows of a layer, per second, and dollars for a million of them."""
        step, n = known.get("latency_s.mean") or known["latency_s"], float(parameters.n_images)
        what = "rows" if parameters.is_layer else "images"
        found = {f"{what}_per_s": _per_step(step, n, f"{what}_per_s")}
        if machine.price is not None:
            usd, name = machine.price.usd_per_h / SECONDS_PER_HOUR / n * 1e6, f"usd_per_million_{what}"
            found[name] = _times_step(step, usd, name)
        return found

    def caveats(self, parameters: ButterflyVision, machine: Machine) -> Sequence[str]:
        """Return that a machine whose other parts were measured never timed layers, and what does."""
        fitted = machine.processor.fitted
        measured = machine.accelerator is None and machine.environment and fitted is not None
        if not measured or fitted is None or "image_linear" in fitted.operators:
            return ()
        return ("layers were never timed on this machine: 'sandtable calibrate --only vision' does",)

    def verdicts(self, parameters: Sequence[ButterflyVision], machine: Machine) -> Sequence[Verdict]:
        """Return whether each fits into memory."""
        return [vision_memory.verdict_of(each, machine) for each in parameters]

    def what_fits(self, parameters: ButterflyVision, machine: Machine) -> Sequence[str]:
        """Return the largest halving of the batch that fits."""
        return vision_memory.what_fits(parameters, machine)

    def prepare(self, parameters: ButterflyVision, machine: Machine, seed: int, context: ExecutionContext) -> None:
        """Check that this machine can do it, and take one step, which compiles kernels.

        Raises:
            ConfigError: more threads than this process may use.
            NoDevice: PyTorch is missing, or it sees no GPU where the machine has one.
        """
        from sandtable_workloads.butterfly import vision_run

        vision_run.prepare(parameters, machine, seed, context)

    def execute(
        self, parameters: ButterflyVision, machine: Machine, seed: int, context: ExecutionContext
    ) -> Execution:
        """Take the steps in PyTorch, or call a layer's kernel, and time each."""
        from sandtable_workloads.butterfly import vision_run

        return vision_run.run_vision(parameters, machine, seed, context)

    def example(self) -> dict[str, Any]:
        """Return a narrow MobileNetV1 and small images."""
        return {"width": 0.25, "resolution": 32, "classes": 10, "steps": 2, "warmup_steps": 1}

    def examples(self) -> Sequence[dict[str, Any]]:
        """Return each network, a step of training, and a layer of every structure."""
        few = {"steps": 2, "warmup_steps": 1}
        small = self.example()
        layer = few | {"network": "layer", "n_in": 48, "n_out": 96, "rows": 10}
        return [
            small,
            small | {"structure": "dense", "mode": "training", "batch": 2},
            small | {"mode": "training", "batch": 2},
            small | {"network": "shufflenet_v2", "width": 0.5, "batch": 3},
            small | {"network": "mobilenet_v3_small", "structure": "low_rank", "width": 0.35, "threads": 1},
            *(layer | {"structure": structure} for structure in get_args(Structure)),
            layer | {"precision": "bfloat16"},
            layer | {"mode": "training", "structure": "low_rank", "n_in": 96, "n_out": 48, "rows": 200},
        ]


def _layer_text(layer: Layer) -> str:
    """Return what a layer alone is: ``1024 x 1024 layer, butterfly base 4: 20.5k multiply-adds a row, ...``."""
    known = {"base": layer.base} if layer.structure == "butterfly" else dict(layer.options)
    form = " ".join([layer.structure, *(f"{name} {number}" for name, number in known.items())]).replace("_", " ")
    counts = [units.format_count(each) for each in (layer.multiply_accumulates(), layer.parameters)]
    side = f"{layer.n_out} x {layer.n_in} layer"
    return f"{side}, {form}: {counts[0]} multiply-adds a row, {counts[1]} parameters"


def _per_step(step: Metric, amount: float, name: str) -> Metric:
    return Metric(
        value=amount / step.value, low=amount / step.high, high=amount / step.low, unit=units.unit_of(name)
    )


def _times_step(step: Metric, factor: float, name: str) -> Metric:
    low, high = step.low * factor, step.high * factor
    return Metric(value=step.value * factor, low=low, high=high, unit=units.unit_of(name))

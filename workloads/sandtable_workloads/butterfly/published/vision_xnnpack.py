"""MobileNets on phones with XNNPACK, as its authors published them: single cores and all large ones, float32.

The file ships with the package: twelve figures of a README. XNNPACK folds batch norms into the weights and clamps
into the layer before, so that both are left out of the prediction; everything else follows the laws of PyTorch on a
CPU, from the data sheet of a phone. No constant was fitted to a phone.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import ClassVar

from sandtable.hardware import Machine, library
from sandtable.model.cost_model import CostModel
from sandtable.published.adapter import Adapter, Outcome, Scored, Skipped
from sandtable.published.rows import MalformedRow, Row
from sandtable_workloads.butterfly.butterfly_parameters import ButterflyVision
from sandtable_workloads.butterfly.layer_demand import Runs, inference_ops
from sandtable_workloads.butterfly.networks import Layer

SOFTWARE = "pytorch_cpu"


class VisionXnnpack(Adapter):
    """Latencies of an image of 224 pixels, batch 1."""

    name: ClassVar[str] = "vision_xnnpack"
    title: ClassVar[str] = "XNNPACK: MobileNets on the CPUs of phones"
    metrics: ClassVar[tuple[str, ...]] = ("latency_s",)

    def predict(self, row: Row) -> Outcome:
        """Predict one row from its phone's data sheet."""
        measured, cores = row.number("latency_ms"), row.number("cores")
        if not row.text("machine"):
            return Skipped("no device file")
        if measured is None or cores is None:
            raise MalformedRow("no latency, or no number of cores")
        network = row.text("network")
        seconds, low, high = _seconds(row.text("machine"), network, int(cores))
        return [
            Scored(
                row_id=f"line {row.line}",
                metric=self.metrics[0],
                unit="s",
                predicted=seconds,
                low=low,
                high=high,
                measured=measured / 1e3,
                label=f"{network} on {int(cores)} cores of {row.text('phone')}",
                group=row.text("phone"),
            )
        ]


@lru_cache(maxsize=4)
def _machine(name: str) -> Machine:
    return library.load_machine(name).model_copy(update={"stack": library.load_stack(SOFTWARE)})


def _seconds(machine: str, network: str, cores: int) -> tuple[float, float, float]:
    """Return the seconds of an image, and the interval, in which all laws are wrong together."""
    settings = {"network": network, "structure": "dense", "resolution": 224, "threads": cores}
    p, phone = ButterflyVision.model_validate(settings), _machine(machine)
    whole = p.built()
    kept = replace(whole, layers=tuple(layer for layer in whole.layers if not _is_folded(layer)))
    costs = CostModel(phone)
    times = [costs.time(op) for op in inference_ops(kept, Runs.of(p, phone))]
    return sum(t.seconds for t in times), sum(t.low for t in times), sum(t.high for t in times)


def _is_folded(layer: Layer) -> bool:
    """Whether it is part of the layer before: a norm or a relu, which is a clamp. A hard swish takes a pass."""
    return layer.kind == "norm" or layer.function == "relu"

"""Which law serves a kind of operator, and whose fitted constants it uses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sandtable.demand.op import COLLECTIVES
from sandtable.hardware import Link, OperatorFit, Processor, Stack
from sandtable.model.law import OperatorLaw
from sandtable.model.laws.attention_law import AttentionLaw
from sandtable.model.laws.collective_law import CollectiveLaw
from sandtable.model.laws.experts_law import MoeLaw
from sandtable.model.laws.gemm_law import GemmLaw
from sandtable.model.laws.memory_bound import StreamLaw

LAWS: dict[str, OperatorLaw] = {
    law.kind: law for law in (GemmLaw(), AttentionLaw(), StreamLaw(), MoeLaw(), CollectiveLaw())
}
# ends the name of a software's constants for processes that share a device, see `Op.sharing`
SHARED = "_shared"
# predicted / measured at the ends of the 90 % interval where no constant was ever fitted
UNFITTED_LOW_FRAC, UNFITTED_HIGH_FRAC = 0.5, 2.0


@dataclass(frozen=True, slots=True)
class Resolved:
    """Constants for one kind of operator on one device: their values, their interval, and where they are from.

    ``origin`` is "device" (fitted on it), "like" (fitted on the one that its file names), "siblings" (pooled by the
    software's file) or "typical".
    """

    values: Mapping[str, float]
    residual_low_frac: float
    residual_high_frac: float
    origin: str


def law_of(op_kind: str) -> OperatorLaw | None:
    """Return the law that serves an op of this kind, None where it has none of its own."""
    return LAWS.get("collective" if op_kind in COLLECTIVES else op_kind)


def resolve(law: OperatorLaw, device: Processor | Link, software: str, stack: Stack | None) -> Resolved:
    """Return the constants of ``law``: the device's own for that software, else its siblings', else typical ones."""
    own = None if device.fitted is None else device.fitted.operators.of(law.kind).get(software)
    pooled = None if stack is None or stack.fitted is None else stack.fitted.operators.of(law.kind).get(software)
    if own is not None:
        return _resolved(own, own, "device")
    like = device.like if isinstance(device, Processor) else None
    near = None if like is None or like.fitted is None else like.fitted.operators.of(law.kind).get(software)
    if near is not None:
        # how far constants miss on a device they were not fitted to is what pooling found out
        return _resolved(near, pooled or near, "like")
    if pooled is not None:
        return _resolved(pooled, pooled, "siblings")
    return Resolved(law.typical(), UNFITTED_LOW_FRAC, UNFITTED_HIGH_FRAC, "typical")


def _resolved(fit: OperatorFit, spread: OperatorFit, origin: str) -> Resolved:
    evidence = spread.evidence
    return Resolved(fit.values(), evidence.residual_low_frac, evidence.residual_high_frac, origin)

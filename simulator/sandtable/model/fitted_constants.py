"""Whose fitted constants an operator uses on a device under a software."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sandtable.demand.op import Op
from sandtable.demand.operator import FloatArray, Operator, operator_named
from sandtable.errors import ConfigError
from sandtable.hardware import Evidence, Link, OperatorFit, Processor, Stack
from sandtable.model.extrapolation import beyond
from sandtable.units import strip_suffix

# ends the name of a software's constants for processes that share a device, see `Op.sharing`
SHARED = "_shared"
# the software of kernels that belong to none: whoever wrote the kernel wrote its operator
OWN = "own"
# predicted / measured at the ends of the 90 % interval where no constant was ever fitted
UNFITTED_LOW_FRAC, UNFITTED_HIGH_FRAC = 0.5, 2.0
# where constants are from that nothing measured stands behind
TYPICAL = "typical"


@dataclass(frozen=True, slots=True)
class Resolved:
    """Constants of one operator on one device: their values, their interval, and where they are from.

    ``origin`` is "device" (fitted on it), "like" (fitted on the one that its file names), "siblings" (pooled by the
    software's file) or "typical"; ``evidence`` is that of a fit to the device itself, ``about`` that of the interval.
    """

    values: Mapping[str, float]
    residual_low_frac: float
    residual_high_frac: float
    origin: str
    evidence: Evidence | None = None
    about: Evidence | None = None


def resolve(operator: Operator[Any], device: Processor | Link, software: str, stack: Stack | None) -> Resolved:
    """Return the constants of ``operator``: the device's own for that software, else its siblings', else typical ones.

    Raises:
        ConfigError: a fit lacks a constant that the operator's law needs.
    """
    pooled = fit_of(operator, stack, software)
    like = device.like if isinstance(device, Processor) else None
    for component, origin in ((device, "device"), (like, "like"), (stack, "siblings")):
        fit = fit_of(operator, component, software)
        if component is not None and fit is not None:
            values = values_of(operator, fit, component.name, software)
            # how far constants miss on a device they were not fitted to is what pooling found out
            evidence = (pooled or fit if origin == "like" else fit).evidence
            own = evidence if origin == "device" else None
            return Resolved(values, evidence.residual_low_frac, evidence.residual_high_frac, origin, own, evidence)
    return _typical(operator)


def fit_of(
    operator: Operator[Any], component: Processor | Link | Stack | None, software: str
) -> OperatorFit | None:
    """Return the fit that a device file or a software's file holds, None if it has none."""
    if component is None or component.fitted is None:
        return None
    return component.fitted.operators.get(operator.fitted_as, {}).get(software)


def values_of(operator: Operator[Any], fit: OperatorFit, component: str, software: str) -> dict[str, float]:
    """Return the constants that an operator's law needs, from a fit in the file of ``component``.

    Raises:
        ConfigError: one is missing.
    """
    values = fit.values()
    for name in (constant.name for constant in operator.constants if constant.name not in values):
        raise ConfigError(
            f"fitted.operators.{operator.fitted_as}.{software} lacks {strip_suffix(name)!r}, which the law of "
            f"{operator.name!r} needs: calibrate again, or add it",
            file=f"{component}.yaml",
        )
    return values


def spread(
    operator: Operator[Any], constants: Resolved, kind: str, columns: Mapping[str, Any]
) -> tuple[FloatArray, FloatArray]:
    """Return predicted over measured at the ends of the 90 % interval of demands of one kind, see `extrapolation`."""
    extra = beyond(operator, constants.about, kind, columns)
    ends = np.log(constants.residual_low_frac), np.log(constants.residual_high_frac)
    low, high = (np.exp(sign * np.hypot(end, extra)) for sign, end in zip((-1, 1), ends, strict=True))
    return low, high


def resolve_for(op: Op, device: Processor | Link, stack: Stack | None) -> Resolved:
    """Return the constants of an op: of the first of its softwares that was measured, see `softwares_of`.

    Processes that share a device have constants of their own, where those were measured.

    Raises:
        ConfigError: see `resolve`.
    """
    operator = operator_named(op.operator)
    suffixes = (SHARED, "") if op.sharing > 1 else ("",)
    names = (software + suffix for software in softwares_of(operator, op, stack) for suffix in suffixes)
    found = (resolve(operator, device, name, stack) for name in names)
    return next((constants for constants in found if constants.origin != TYPICAL), _typical(operator))


def _typical(operator: Operator[Any]) -> Resolved:
    return Resolved(operator.typical(), UNFITTED_LOW_FRAC, UNFITTED_HIGH_FRAC, TYPICAL)


def softwares_of(operator: Operator[Any], op: Op, stack: Stack | None) -> tuple[str, ...]:
    """Return whose constants apply, best first: what the stack names, else the stack itself, else `OWN`.

    A stack names a software by variant, by operator or element type, or by what the operator is fitted as: some
    software has another way for one type, 'gemm.fp8_block', or for one collective, 'all_reduce'. Constants of ops
    of one role, 'memory_bound.forward.norm', come before those of all of their kind, where there are some.
    """
    shared, variant = operator.fitted_as, operator.variant(op.shape)
    own = _of_variant(OWN, variant)
    if stack is None:
        return (own,)
    names = (operator.name,) if operator.name != shared else ()
    keys = (f"{shared}.{variant}",) if variant else (*names, f"{shared}.{op.dtype}")
    named = next((stack.software[key] for key in (*keys, shared) if key in stack.software), None)
    special = stack.software.get(f"{shared}.{op.role}")
    return (*((special,) if special else ()), *((named,) if named is not None else (stack.name, own)))


def kept_under(software: str, op: Op) -> str:
    """Return the name that constants fitted to an op are kept under: its software's, with variant and sharing."""
    name = _of_variant(software, operator_named(op.operator).variant(op.shape))
    return name + (SHARED if op.sharing > 1 else "")


def _of_variant(software: str, variant: str) -> str:
    return f"{software}_{variant}" if variant else software

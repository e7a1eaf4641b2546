"""Constants of laws that were fitted to measurements: a few physical numbers per device and software.

A device file keeps them under ``fitted.operators.<operator>.<software>``, a stack file those pooled from its devices,
for a device that was never measured. Which constants there are is said by the operator's class (see
`sandtable.demand.operator`); here they are numbers with names. The unit of a value is part of the constant's name, as
everywhere: ``launch: 3 us`` is ``launch_s``, ``rate: 83 %`` is ``rate_frac``, and a bare number has no suffix.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import ValidationInfo, model_validator

from sandtable import units
from sandtable.hardware.component import Component, Estimate, Evidence, Frozen
from sandtable.units import BytesPerSecond, FlopsPerSecond, Seconds

EVIDENCE = "evidence"


class OpFit(Frozen):
    """Constants of a plain operation's law, see `sandtable.demand.operator.plain_seconds`.

    ``per_special_s`` is the time of one exponential, logarithm or the like. With ``serial`` moving data and arithmetic
    are added: the operation first moves its data, then computes.
    """

    overhead_s: Estimate[Seconds]
    per_item_s: Estimate[Seconds] = Estimate[float](value=0.0, low=0.0, high=0.0)
    per_special_s: Estimate[Seconds] = Estimate[float](value=0.0, low=0.0, high=0.0)
    bandwidth_bytes_per_s: Estimate[BytesPerSecond] | None = None
    rate_flops_per_s: Estimate[FlopsPerSecond] | None = None
    serial: bool = False
    evidence: Evidence

    @model_validator(mode="after")
    def _bound(self) -> OpFit:
        if self.bandwidth_bytes_per_s is None and self.rate_flops_per_s is None:
            raise ValueError("an operation's fit needs 'bandwidth', 'rate', or both")
        return self

    def constants(self) -> dict[str, float]:
        """Return the constants by name, in SI units."""
        found = ((name, value) for name, _, value in self.entries() if isinstance(value, Estimate))
        return {name: float(value.value) for name, value in found}


class OperatorFit(Frozen):
    """Fitted constants by name, in SI units, with 90 % intervals.

    An interval without width says that the points told nothing of that constant: it is that of siblings, or typical.
    """

    evidence: Evidence
    constants: dict[str, Estimate[float]]

    @model_validator(mode="before")
    @classmethod
    def _named(cls, data: Any, info: ValidationInfo) -> Any:
        """Gather what stands beside the evidence in a file as constants."""
        if info.context != units.AT_EDGE or not isinstance(data, Mapping):
            return data
        rest = {key: value for key, value in data.items() if key != EVIDENCE}
        constants = dict(_constant(key, value) for key, value in rest.items())
        return {"constants": constants} | {key: data[key] for key in data if key == EVIDENCE}

    @model_validator(mode="after")
    def _not_negative(self) -> OperatorFit:
        below = [units.strip_suffix(name) for name, estimate in self.constants.items() if not estimate.low >= 0]
        if below:
            raise ValueError(f"{below[0]}: a time, a share or a rate is not below zero")
        return self

    def entries(self, *, stated: bool = False) -> Iterator[tuple[str, str, Any]]:
        """See `Frozen.entries`: constants stand beside the evidence."""
        yield EVIDENCE, EVIDENCE, self.evidence
        for name, estimate in self.constants.items():
            yield name, units.strip_suffix(name), estimate

    def values(self) -> dict[str, float]:
        """Return the constants by name, in SI units."""
        return {name: estimate.value for name, estimate in self.constants.items()}


class LawSettings(Frozen):
    """What an operator's law takes as given on a device and nobody fits, by name, in SI units."""

    settings: dict[str, float]

    @model_validator(mode="before")
    @classmethod
    def _named(cls, data: Any, info: ValidationInfo) -> Any:
        if info.context != units.AT_EDGE or not isinstance(data, Mapping):
            return data
        return {"settings": dict(_constant(key, value) for key, value in data.items())}

    def entries(self, *, stated: bool = False) -> Iterator[tuple[str, str, Any]]:
        """See `Frozen.entries`."""
        return ((name, units.strip_suffix(name), value) for name, value in self.settings.items())


# by `Operator.fitted_as`
Laws = dict[str, LawSettings]


class Family(Component):
    """What laws take as given on any device of a family, such as a GPU, or on any link."""

    kind: Literal["family"]
    variant_of: str | None = None
    laws: Laws


# by `Operator.fitted_as`, then by software
OperatorFits = dict[str, dict[str, OperatorFit]]


def _constant(key: str, value: Any) -> tuple[str, Any]:
    """Return the name of a constant in a file, with the suffix of its unit, and its value in SI units."""
    parts = dict(value) if isinstance(value, Mapping) else {"value": value}
    suffixes = {units.suffix_of(part) for part in parts.values()}
    if not parts:
        raise ValueError(f"{key}: this section is empty: write its value, low and high")
    if len(suffixes) > 1:
        raise ValueError(f"{key}: value, low and high need units of one kind")
    suffix = suffixes.pop()
    quantity = units.quantity_of(suffix) if suffix else None
    numbers = {name: part if quantity is None else units.parse(part, quantity) for name, part in parts.items()}
    return key + suffix, numbers if isinstance(value, Mapping) else numbers["value"]

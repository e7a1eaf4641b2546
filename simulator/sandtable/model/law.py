"""What a law of an operator is: a data sheet, a few fitted constants and a demand in; seconds out.

Laws are pure and work on NumPy arrays: each column of a demand is a number or an array, and one call answers for all
of them. An operator that a law knows is described by the columns of `sandtable.demand.plan.OPERATOR_COLUMNS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from sandtable.demand.op import COLUMN_DEFAULTS, OPERATOR_COLUMNS
from sandtable.errors import PlanError
from sandtable.hardware import DTYPE_ARITHMETIC, DTYPE_BYTES, Link, Memory, OperatorFit, Processor

FloatArray = npt.NDArray[np.float64]
Columns = Mapping[str, FloatArray]
Constants = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Sheet:
    """The data sheet of one device as laws read it; a device that nobody measured has all of it too.

    ``n_units`` are the processors that tiles are spread over (streaming multiprocessors, compute units, cores);
    ``exponentials_per_clock`` is what one of them finishes, None where the device file does not say.
    """

    name: str
    n_units: int
    peak_flops_per_s: Mapping[str, float]
    bandwidth_bytes_per_s: float
    cache_bytes: float
    clock_hz: float | None = None
    family: str = "gpu"
    exponentials_per_clock: float | None = None

    @classmethod
    def of(cls, processor: Processor, memory: Memory) -> Sheet:
        """Read the sheet off a processor and the memory that it works from."""
        datasheet = processor.datasheet
        return cls(
            name=processor.name,
            n_units=datasheet.cores,
            peak_flops_per_s={str(key): value for key, value in datasheet.peak_flops_per_s.items()},
            bandwidth_bytes_per_s=memory.datasheet.bandwidth_bytes_per_s,
            cache_bytes=datasheet.last_level_cache_bytes or 0.0,
            clock_hz=datasheet.clock_hz,
            family=datasheet.family,
            exponentials_per_clock=datasheet.exponentials_per_clock,
        )

    def share(self, n: int) -> Sheet:
        """Return what each of ``n`` equal processes has of the device when all of them work at the same time."""
        if n == 1:
            return self
        return replace(
            self,
            n_units=max(1, self.n_units // n),
            peak_flops_per_s={dtype: rate / n for dtype, rate in self.peak_flops_per_s.items()},
            bandwidth_bytes_per_s=self.bandwidth_bytes_per_s / n,
            cache_bytes=self.cache_bytes / n,
        )

    def peak(self, dtype: str) -> float:
        """Return the dense rate for ``dtype`` in FLOP/s: of the type it multiplies in, or the narrowest wider one.

        Integers are their own kind: they stand in for no float, and a float stands in for them.

        Raises:
            PlanError: the device has no arithmetic that wide.
        """
        return self.peak_flops_per_s[self.arithmetic(dtype)]

    def arithmetic(self, dtype: str) -> str:
        """Return the element type that a product of ``dtype`` multiplies in on this device; see `peak`."""
        wanted = DTYPE_ARITHMETIC.get(dtype, dtype)
        if wanted in self.peak_flops_per_s:
            return wanted
        floats = [name for name in self.peak_flops_per_s if not name.startswith("int")]
        wider = [name for name in floats if DTYPE_BYTES[name] >= DTYPE_BYTES[wanted]]
        if not wider:
            raise PlanError(f"{self.name!r} states no arithmetic rate for {dtype}")
        return min(wider, key=lambda name: (DTYPE_BYTES[name], -self.peak_flops_per_s[name]))


@dataclass(frozen=True, slots=True)
class LinkSheet:
    """The data sheets of the links between the ranks of a group: within a machine, and between machines.

    Bandwidths are per device and one way; ``between_bytes_per_s`` is infinite where a group stays in one machine.
    ``peer_bytes_per_s`` bounds what one pair has. See `sandtable.hardware.LinkDatasheet` for ``shared`` and
    ``reduces``.
    """

    within_bytes_per_s: float
    within_latency_s: float
    between_bytes_per_s: float = float("inf")
    between_latency_s: float = 0.0
    peer_bytes_per_s: float = float("inf")
    shared: bool = False
    reduces: bool = False

    @classmethod
    def of(cls, within: Link, between: Link | None = None, n_devices: float = 1.0) -> LinkSheet:
        """Read the sheet off the links. ``n_devices`` of a machine share a link that is rated per machine."""
        inside = within.datasheet
        sheet = cls(
            within_bytes_per_s=inside.bandwidth_bytes_per_s,
            within_latency_s=inside.latency_s,
            peer_bytes_per_s=inside.peer_bandwidth_bytes_per_s or float("inf"),
            shared=inside.shared,
            reduces=inside.reduces,
        )
        if between is None:
            return sheet
        outside = between.datasheet
        shares = n_devices if outside.per == "machine" else 1.0
        return replace(
            sheet,
            between_bytes_per_s=outside.bandwidth_bytes_per_s / shares,
            between_latency_s=outside.latency_s,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """One constant of a law: the bounds between which it is fitted, and what a device nobody knows would get.

    ``starts`` are further values to start a fit from, for a constant at which times jump, so that no slope leads to it.
    """

    name: str
    typical: float
    low: float
    high: float
    starts: tuple[float, ...] = ()


class OperatorLaw(ABC):
    """The law of one kind of operator.

    ``kind`` names its columns in `OPERATOR_COLUMNS`, and its fits in a device file. ``loss`` says how residuals count
    in a fit: "soft_l1" by their size beyond a tenth; "cauchy" hardly at all far beyond, where some of the timed kernels
    wait for something that the law does not know of, such as the host. ``prior`` is the log error that a constant e
    times that of its siblings costs in a fit: it keeps in place what the points say little of.
    """

    kind: ClassVar[str]
    loss: ClassVar[str] = "soft_l1"
    prior: ClassVar[float] = 0.01
    fit: ClassVar[type[OperatorFit]]
    constants: ClassVar[tuple[Constant, ...]]

    @abstractmethod
    def seconds(
        self, sheet: Sheet | LinkSheet, constants: Constants, columns: Columns, *, dtype: str, op: str
    ) -> FloatArray:
        """Return the time of each demand in seconds.

        Args:
            sheet: The device, or the links of a collective.
            constants: Values by name, as `OperatorFit.values` gives them.
            columns: One array per column of this kind.
            dtype: Element type that the arithmetic runs in.
            op: The kind of `Op`: equals ``kind``, except for collectives, where it names the collective.
        """

    def columns(self, shape: Sequence[float | FloatArray]) -> dict[str, FloatArray]:
        """Return a shape's numbers by column name, as arrays of one length; last ones with a default may be left out.

        Raises:
            PlanError: too few numbers, or too many.
        """
        names = OPERATOR_COLUMNS[self.kind]
        missing = names[len(shape) :]
        shape = [*shape, *(COLUMN_DEFAULTS[name] for name in missing if name in COLUMN_DEFAULTS)]
        if len(shape) != len(names):
            raise PlanError(f"a {self.kind} needs {len(names)} numbers ({', '.join(names)}), not {len(shape)}")
        arrays = np.broadcast_arrays(*(np.atleast_1d(np.asarray(part, dtype=np.float64)) for part in shape))
        return dict(zip(names, arrays, strict=True))

    def typical(self) -> dict[str, float]:
        """Return the constants assumed where neither the device nor its software was ever measured."""
        return {constant.name: constant.typical for constant in self.constants}

"""What a calibration gives: a machine, the timings behind it, and what its laws say of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sandtable import units
from sandtable.calibration.calibration_card import calibration_answer
from sandtable.calibration.timing import Timing
from sandtable.demand.kernel import Dims
from sandtable.hardware import Machine
from sandtable.model.cost_model import CostModel
from sandtable.results import Answer
from sandtable.table import Framed

if TYPE_CHECKING:
    from pandas import DataFrame

COLUMNS = ("kernel", "point", "measured_s", "fitted_s", "error_frac")


@dataclass(frozen=True, kw_only=True)
class Calibrated(Framed):
    """A calibrated machine, what it was fitted to, and what the user should know of its quality.

    ``fitted_s`` is what the machine says of each of the ``timings``, in seconds. ``cross_check`` holds this
    calibration's rate and another program's at some points of the storage curve: bytes of a request, requests in
    flight, bytes/s of each. ``host`` says whether parts of the host were measured.
    """

    machine: Machine
    timings: Sequence[Timing] = ()
    fitted_s: Sequence[float] = ()
    cross_check: Sequence[tuple[float, int, float, float]] = ()
    warnings: Sequence[str] = ()
    host: bool = True
    seconds: float = 0.0

    @property
    def answer(self) -> Answer:
        """How fast the machine is, and how well that is known."""
        pairs = zip(self.timings, self.fitted_s, strict=True)
        errors = [fitted_s / timing.seconds - 1 for timing, fitted_s in pairs]
        return calibration_answer(self.machine, errors, self.warnings, host=self.host)

    def fitted_to(self, machine: Machine, timings: Sequence[Timing], warnings: Sequence[str]) -> Calibrated:
        """Return the same with ``machine``, which was fitted to some timings more."""
        costs = CostModel(machine)
        return replace(
            self,
            machine=machine,
            timings=[*self.timings, *timings],
            fitted_s=[*self.fitted_s, *(costs.time(timing.op).seconds for timing in timings)],
            warnings=[*self.warnings, *warnings],
        )

    def to_frame(self) -> DataFrame:
        """Return the measured points beside what the fitted laws say, as a pandas frame; times in seconds."""
        import pandas as pd

        rows = [
            (timing.kernel, describe(timing.dims), timing.seconds, fitted_s, fitted_s / timing.seconds - 1)
            for timing, fitted_s in zip(self.timings, self.fitted_s, strict=True)
        ]
        return pd.DataFrame(rows, columns=list(COLUMNS))


def describe(dims: Dims) -> str:
    """Return a point of a grid on one line."""
    parts = []
    for key, value in dims.items():
        text = units.format_bytes(value) if key.endswith("bytes") else str(value)
        parts.append(f"{units.strip_suffix(key)}={text}".replace(" ", ""))
    return " ".join(parts)

"""What a study came to: a column per metric, and why points were dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sandtable.demand.operator import FloatArray
from sandtable.errors import ConfigError, did_you_mean
from sandtable.hardware import Frozen, Machine
from sandtable.runs.compare import condition
from sandtable.studies.study import Point, Study
from sandtable.table import Framed

if TYPE_CHECKING:
    import pandas as pd

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome(Framed):
    """The points of a study with their metrics; an entry of every column is one point, and NaN where it cannot run.

    Attributes:
        study: What was asked.
        points: Its points, in order.
        columns: Values by metric.
        reasons: Why a point was dropped, in words to be counted; empty where it was not.
        parameters, machines: What a point runs, and on which machine; without parameters where they are not valid.
        nearest: Of the points that do not fit, the one that misses by the least, in words.
    """

    study: Study
    points: Sequence[Point]
    columns: Mapping[str, FloatArray]
    reasons: Sequence[str]
    parameters: Sequence[Frozen | None] = field(default=(), repr=False)
    machines: Sequence[Machine] = field(default=(), repr=False)
    nearest: str = ""

    @property
    def runs(self) -> BoolArray:
        """Which points can run."""
        return np.array([not reason for reason in self.reasons], dtype=bool)

    def column(self, metric: str) -> FloatArray:
        """Return a metric of all points.

        Raises:
            ConfigError: there is none of that name.
        """
        if metric not in self.columns:
            raise ConfigError(f"the study has no metric {metric!r}{did_you_mean(metric, self.columns)}")
        return self.columns[metric]

    def also(self, columns: Mapping[str, FloatArray]) -> Outcome:
        """Return the outcome with further columns."""
        return replace(self, columns={**self.columns, **columns})

    # --- conditions ----------------------------------------------------------------------------------------------

    def conditions(self) -> dict[str, BoolArray]:
        """Return which points meet each constraint, by the constraint in words."""
        read = [(metric, condition(metric, text)) for metric, text in self.study.constraints.items()]
        return {words: np.asarray(holds(self.column(metric))) & self.runs for metric, (words, holds) in read}

    def within(self) -> BoolArray:
        """Return which points can run and meet every constraint."""
        met: BoolArray = np.all([self.runs, *self.conditions().values()], axis=0)
        return met

    def dropped(self) -> Counter[str]:
        """Return how many points cannot run, by reason."""
        return Counter(reason for reason in self.reasons if reason)

    def missed(self) -> Counter[str]:
        """Return how many points can run and miss a constraint, by constraint."""
        runs = int(self.runs.sum())
        return Counter({words: runs - int(held.sum()) for words, held in self.conditions().items()})

    # --- choosing ------------------------------------------------------------------------------------------------

    def best(self) -> int | None:
        """Return the place of the best point by the study's objective, None if no point meets its constraints.

        Raises:
            ConfigError: the study has no objective, or one that is not 'min METRIC' or 'max METRIC'.
        """
        places = np.flatnonzero(self.within())
        keys = [self._cost(text)[places] for text in _listed(self.study.objective)]
        if not keys:
            raise ConfigError(f"study {self.study.name!r} has no objective: write one like 'min usd'")
        return int(places[np.lexsort(keys[::-1])[0]]) if len(places) else None

    def _cost(self, objective: str) -> FloatArray:
        sense, _, metric = objective.strip().partition(" ")
        if sense not in ("min", "max") or not metric:
            raise ConfigError(f"objective {objective!r} is not understood: write 'min METRIC' or 'max METRIC'")
        return self.column(metric.strip()) * (1 if sense == "min" else -1)

    def front(self, first: str, second: str) -> list[int]:
        """Return the places of points that no other beats in both of two objectives, from the best in the first on."""
        a, b = self._cost(first), self._cost(second)
        places = np.flatnonzero(self.runs)
        found: list[int] = []
        for place in places[np.lexsort((b[places], a[places]))]:
            if not found or b[place] < b[found[-1]]:
                found.append(int(place))
        return found

    def difference(self, before: int, after: int) -> dict[str, float]:
        """Return every metric of one point less that of another; exchanged, all change their sign."""
        return {metric: float(column[after] - column[before]) for metric, column in self.columns.items()}

    def place(self, name: str) -> int:
        """Return the place of a point by name.

        Raises:
            ConfigError: there is none.
        """
        names = [point.name for point in self.points]
        if name not in names:
            raise ConfigError(f"the study has no point {name!r}{did_you_mean(name, names)}")
        return names.index(name)

    def to_frame(self) -> pd.DataFrame:
        """Return a row per point: its name, its label on each axis, the reason if it was dropped, and all metrics."""
        import pandas as pd

        axes = dict.fromkeys(axis for point in self.points for axis in point.labels)
        labels = {axis: [point.labels.get(axis) for point in self.points] for axis in axes}
        names = pd.Index([point.name for point in self.points], name="point")
        return pd.DataFrame({**labels, "dropped": list(self.reasons), **self.columns}, index=names)


def _listed(objective: tuple[str, ...] | str) -> Sequence[str]:
    return (objective,) if isinstance(objective, str) else objective

"""Evaluate the points of a study: through the engine, or by a workload's closed form for many at once."""

from __future__ import annotations

from collections.abc import Iterator

from sandtable.results import Prediction
from sandtable.run import predict
from sandtable.study.study import Study


def predictions(study: Study) -> Iterator[Prediction]:
    """Yield the prediction of each point, through the engine.

    Raises:
        DoesNotFit: a point needs more memory than there is.
    """
    for case in study.resolved():
        yield predict.predict(case.scenario, case.workload, case.parameters, case.machine)[0]

"""Run folders for reports: predictions, and runs that took as much longer as a test wants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sandtable import api
from sandtable.results import Measurement
from sandtable.runs import compare
from sandtable.runs.run_folder import RunFolder


def kept(base: Path, name: str, changes: dict[str, Any] | None = None, error_frac: float | None = None) -> Path:
    """Keep a prediction; with an error also a run that took that much longer than predicted."""
    found = api.simulate(name, changes)
    folder = RunFolder.create(name, base)
    folder.save(found.prediction)
    folder.save_inputs(found.case.scenario, found.case.machine)
    if error_frac is not None:
        metrics = {
            key: metric.model_copy(
                update={end: getattr(metric, end) * (1 + error_frac) for end in ("value", "low", "high")}
            )
            for key, metric in found.prediction.metrics.items()
            if metric.unit == "s"
        }
        fields = found.prediction.model_dump(exclude={"kind", "metrics", "by_op", "binding_resource", "guesses"})
        measurement = Measurement(**fields, metrics=metrics)
        folder.save(measurement)
        folder.save(compare.judge(compare.compare(found.prediction, measurement)))
    return folder.path

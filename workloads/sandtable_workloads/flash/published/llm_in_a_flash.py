"""Tables 2 and 3 of "LLM in a flash" (arXiv 2312.11514): milliseconds per token by rung and backend.

The file ships with the package: a dozen figures of a paper. Each row names the scenario that stands for it. Some
cells are anchors: a number in the device file comes from that very cell, so it is no test and is not scored. The
paper's naive rows on CPU and GPU repeat the bandwidth of the Mac's drive in float16; their I/O is left empty here.
"""

from __future__ import annotations

from functools import lru_cache
from typing import ClassVar

from sandtable.published.adapter import Adapter, Outcome, Scored, Skipped
from sandtable.published.rows import Row
from sandtable.results import Prediction
from sandtable.runs import predict
from sandtable.workload import scenarios

# column of the file -> metric of the prediction
_COLUMNS = {
    "io_ms": "io_s.mean",
    "memory_ms": "memory_s.mean",
    "compute_ms": "compute_s.mean",
    "total_ms": "latency_s.mean",
}


class LlmInAFlash(Adapter):
    """The paper's own ladder, predicted from device files and arithmetic."""

    name: ClassVar[str] = "llm_in_a_flash"
    title: ClassVar[str] = "LLM in a flash, Tables 2 and 3: OPT-6.7B on M1 Max and RTX 4090"
    metrics: ClassVar[tuple[str, ...]] = tuple(_COLUMNS.values())

    def predict(self, row: Row) -> Outcome:
        """Predict one row with its scenario."""
        scenario = row.text("scenario")
        if not scenario:
            return Skipped(f"{row.text('rung')} decoding is not modelled")
        prediction = _prediction(scenario, row.text("rung"))
        return [self._cell(row, column, metric, prediction) for column, metric in _COLUMNS.items()]

    def _cell(self, row: Row, column: str, metric: str, prediction: Prediction) -> Scored | Skipped:
        measured = row.number(column)
        if not measured:
            return Skipped("no such figure in the row", metric)
        if column.removesuffix("_ms") in row.text("anchors").split():
            return Skipped("an anchor: a device file is made from this cell", metric)
        predicted = prediction.metrics[metric]
        label = f"{row.text('table')} {row.text('backend')} {row.text('rung')} {column.removesuffix('_ms')}"
        return Scored(
            row_id=f"line {row.line}",
            metric=metric,
            unit="s",
            predicted=predicted.value,
            low=predicted.low,
            high=predicted.high,
            measured=measured / 1e3,
            label=label,
            group=row.text("backend"),
        )


@lru_cache(maxsize=32)
def _prediction(scenario: str, rung: str) -> Prediction:
    settings = [f"parameters.rung={rung}", "parameters.tokens=24", "parameters.prompt_tokens=128"]
    case = scenarios.load(scenario, changes=scenarios.changes_of(settings))
    return predict.predict(case.scenario, case.workload, case.parameters, case.machine)[0]

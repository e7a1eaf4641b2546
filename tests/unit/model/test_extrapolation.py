"""Intervals widen with the distance from what was fitted, in doublings, and for other types; nothing else changes."""

from __future__ import annotations

import datetime as dt
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sandtable.demand.op import Op
from sandtable.demand.operator import operator_named
from sandtable.demand.operator_shapes import GemmShape
from sandtable.hardware import Estimate, Evidence, OperatorFit, ProcessorFit, library
from sandtable.hardware.machine import Machine
from sandtable.model import extrapolation
from sandtable.model.cost_model import CostModel
from sandtable.model.extrapolation import beyond, columns_of
from sandtable.results import NORMAL_95

LAW = operator_named("gemm")


def product(m: float, n: float = 4096, k: float = 4096, dtype: str = "bfloat16", **more: Any) -> Op:
    return Op(name="p", operator="gemm", account="compute", dtype=dtype, shape=GemmShape(m, n, k), **more)


SEEN = [product(1, 1024), product(64, 8192), product(8, 2048, 8192)]


def evidence(**changes: Any) -> Evidence:
    fields: dict[str, Any] = {
        "date": dt.date(2026, 1, 1),
        "n_points": 3,
        "n_samples": 3,
        "method": "made up",
        "median_abs_error_frac": 0.02,
        "p90_abs_error_frac": 0.05,
        "residual_low_frac": 0.9,
        "residual_high_frac": 1.1,
    }
    fields["kinds"], fields["shapes"] = extrapolation.stated(SEEN)
    return Evidence(**fields | changes)


def extra(op: Op, known: Evidence) -> float:
    return float(beyond(LAW, known, extrapolation.kind_of(op), columns_of(op)))


def test_evidence_says_what_it_has_seen() -> None:
    known = evidence()
    assert known.kinds == "gemm bfloat16"
    assert known.shapes.startswith("m 1 to 64, n 1024 to 8192, k 4096 to 8192")
    assert extrapolation.ranges(known.shapes)["n"] == (10.0, 13.0)
    # as it stands in a file
    assert Evidence(**library.to_yaml_data(known)) == known


@pytest.mark.parametrize("shapes", ["m 1..8", "m 1 to", "m 1 to 2; n 1 to 2", "m 1 to x"])
def test_shapes_that_cannot_be_read_are_refused(shapes: str) -> None:
    with pytest.raises(ValidationError, match="shapes"):
        evidence(shapes=shapes)


def test_within_what_was_fitted_nothing_is_wider_and_beyond_it_grows_with_each_doubling() -> None:
    known = evidence()
    assert extra(product(16, 4096), known) == 0
    found = [extra(product(m), known) for m in (64, 128, 256, 512)]
    per_doubling = NORMAL_95 * LAW.scatter.per_doubling
    assert found == pytest.approx([0, per_doubling, 2 * per_doubling, 3 * per_doubling])
    # below as above, and columns join in squares
    assert extra(product(16, 512), known) == pytest.approx(per_doubling)
    assert extra(product(128, 512), known) == pytest.approx(math.sqrt(2) * per_doubling)


def test_another_type_is_wider_and_nothing_is_wider_than_what_nobody_fitted() -> None:
    known = evidence()
    assert extra(product(16, dtype="fp8"), known) == pytest.approx(NORMAL_95 * LAW.scatter.new_kind)
    assert extra(product(2.0**60), known) == pytest.approx(math.log(2))


def test_evidence_that_says_nothing_of_its_shapes_widens_nothing() -> None:
    assert extra(product(2.0**60, dtype="fp8"), evidence(kinds="", shapes="")) == 0


def test_what_is_not_asked_for_lies_nowhere() -> None:
    plain, law = Op(name="c", operator="copy", account="memory", bytes_read=1e6, n_items=64), operator_named("copy")
    kinds, shapes = extrapolation.stated([plain])
    known = evidence(kinds=kinds, shapes=shapes)
    nothing, less = replace(plain, bytes_read=0.0), replace(plain, bytes_read=5e5)
    found = [float(beyond(law, known, kinds, columns_of(op))) for op in (plain, nothing, less)]
    assert found == pytest.approx([0, 0, NORMAL_95 * law.scatter.per_doubling])


@given(st.lists(st.floats(1, 1e6), min_size=1, max_size=5))
def test_many_at_once_are_as_wide_as_each(rows: list[float]) -> None:
    columns = LAW.columns(GemmShape(np.array(rows), 4096, 4096))
    known = evidence()
    together = beyond(LAW, known, "gemm bfloat16", columns._asdict())
    assert np.asarray(together) == pytest.approx([extra(product(m), known) for m in rows])


# --- in a prediction -----------------------------------------------------------------------------------------


@pytest.fixture
def fitted() -> Machine:
    """A machine whose processor has constants of the product's law, and says what they were fitted to."""
    machine = library.load_machine("laptop_pcie4")
    constants = {c.name: Estimate[float](value=c.typical, low=c.low, high=c.high) for c in LAW.constants}
    fit = OperatorFit(evidence=evidence(), constants=constants)
    processor = machine.processor.model_copy(
        update={"fitted": ProcessorFit(operators={"gemm": {"own": fit}}), "like": None}
    )
    return machine.model_copy(update={"processor": processor, "stack": None})


def test_the_interval_of_an_op_joins_both_and_its_value_stays(fitted: Machine) -> None:
    costs = CostModel(fitted)
    near, far = costs.time(product(64, dtype="float32")), costs.time(product(512, dtype="float32"))
    scatter = LAW.scatter
    for time, doublings in ((near, 0), (far, 3)):
        wider = NORMAL_95 * math.hypot(scatter.new_kind, scatter.per_doubling * doublings)
        assert math.log(time.high / time.seconds) == pytest.approx(math.hypot(math.log(0.9), wider))
        assert time.low == pytest.approx(time.seconds * math.exp(-math.hypot(math.log(1.1), wider)))
    # what is wider belongs to the shape: two that are far from another share little of it
    assert near.source is not None
    assert far.source is not None
    assert far.source.own.above > near.source.own.above > NORMAL_95 * scatter.new_kind
    assert far.source.common == near.source.common


def test_many_configurations_get_the_interval_of_each(fitted: Machine) -> None:
    costs, op = CostModel(fitted), product(64, dtype="float32")
    low, high = costs.spread(op, LAW.columns(GemmShape(np.array([64.0, 512.0]), 4096, 4096)))
    for index, m in enumerate((64, 512)):
        time = costs.time(product(m, dtype="float32"))
        assert time.seconds / time.high == pytest.approx(low[index])
        assert time.seconds / time.low == pytest.approx(high[index])

"""How well device files predict published times of products and layers; needs the folder of published measurements.

Bounds are loose: they are there so that the accuracy cannot rot unseen.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from sandtable.hardware import Stack, library
from sandtable.published import scoring

LINEAR = ("attn_pre_proj_ms", "attn_post_proj_ms", "mlp_up_proj_ms", "mlp_down_proj_ms")


@lru_cache(maxsize=8)
def scores_of(folder: Path, name: str) -> dict[str, scoring.DatasetScore]:
    return {score.metric: score for score in scoring.run(folder, name).datasets}


def scores(folder: Path, name: str) -> dict[str, scoring.DatasetScore]:
    if not (folder / f"{name}.csv").is_file():
        pytest.skip(f"{name}.csv is not among the published measurements here")
    return scores_of(folder, name)


def test_products_of_serving_frameworks(reference_folder: Path) -> None:
    data = scores(reference_folder, "op_gemm")["latency_ms"].to_json()
    assert data["scored"] + sum(data["skipped"].values()) == data["rows"]
    assert data["scored"] >= 1700
    assert data["median_abs_error_frac"] < 0.07
    assert data["p90_abs_error_frac"] < 0.26
    assert abs(data["bias_frac"]) < 0.02
    assert data["coverage_frac"] > 0.85
    assert data["held_out"]["median_abs_error_frac"] < 0.08


def test_layers(reference_folder: Path) -> None:
    found = scores(reference_folder, "op_mlp_vidur")
    errors = np.array([abs(point.error_frac) for score in found.values() for point in score.points])
    assert len(errors) > 3000
    assert np.median(errors) < 0.08
    linear = np.array([abs(point.error_frac) for name in LINEAR for point in found[name].points])
    assert np.median(linear) < 0.055
    assert np.percentile(linear, 90) < 0.16


def test_best_rates(reference_folder: Path) -> None:
    """Among them devices of three vendors on which no product was ever fitted."""
    data = scores(reference_folder, "op_matmul_peak")["measured_peak_tflops"].to_json()
    assert data["scored"] == data["rows"]
    assert data["median_abs_error_frac"] < 0.2


def test_products_on_export_variants(reference_folder: Path) -> None:
    products = [p for p in scores(reference_folder, "op_infersim")["latency_us"].points if p.group.endswith("gemm")]
    errors = np.array([abs(point.error_frac) for point in products])
    assert len(errors) > 500
    assert np.median(errors) < 0.07


@pytest.mark.parametrize(
    ("software", "kind", "bound"),
    [("vllm", "gemm", 0.16), ("sglang", "gemm", 0.12), ("trtllm", "gemm", 0.13), ("cublas", "gemm", 0.09)],
)
def test_a_device_left_out(software: str, kind: str, bound: float) -> None:
    """The stack files state what leaving one device out at a time missed when they were fitted."""
    stack = library.load_component("stack", software)
    assert isinstance(stack, Stack)
    assert stack.fitted is not None
    evidence = stack.fitted.operators.of(kind)[software].evidence
    assert evidence.held_out_median_abs_error_frac is not None
    assert evidence.held_out_median_abs_error_frac < bound

"""Kernels of a step on a GPU: the stack file states what is counted, and a profile of real steps shows as many."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from sandtable.hardware import Stack, library
from sandtable_kernels.cuda import cuda_counts

H100 = Path(__file__).parents[2] / "fixtures" / "gpu_h100"
LAYERS, WIDTH, NEURONS, HEADS = 19, 1920, 5184, 60
NARROW, MIXED = ("slm_1b", 4, "bfloat16"), ("slm_1b", 8, "mixed_bfloat16")

# composite, whether backward, bytes per element that the plan counts in 16 bits; norms of a float32 stream and the sums
# into it are those of autocast
ROWS = [
    ("norm", False, "norm", 4),
    ("norm", True, "norm backward", 6),
    ("add", False, "residual", 6),
    ("gate", False, "activation", 6),
    ("gate", True, "activation backward", 10),
    ("rope", False, "rope", 4),
    ("rope", True, "rope backward", 4),
    ("cross_entropy", False, "loss", 2),
    ("cross_entropy", True, "loss backward", 4),
]
AUTOCAST_ROWS = [
    ("norm", False, "norm", 4),
    ("norm", True, "norm backward", 6),
    ("casts", False, "casts", 4),
    ("casts", True, "casts backward", 4),
    ("add", False, "residual", 6),
    ("add", True, "residual backward", 6),
    ("weights", False, "weights", 2),
    ("weights", True, "weights backward", 2),
]


# autograd's rows of kernels, as the steps of the profile were executed, and what replaced them
NOW = {"gate": "silu_gated", "rope": "turned_heads"}


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("file", ["pytorch_cuda", str(H100 / "pytorch_cuda.yaml")], ids=["now", "then"])
def test_the_stack_file_states_these_counts(file: str, autocast: bool) -> None:
    stack = library.load_component("stack", file)
    assert isinstance(stack, Stack)
    names = NOW if file == "pytorch_cuda" else {}
    for before, backward, name, least in AUTOCAST_ROWS if autocast else ROWS:
        composite = names.get(before, before)
        found = stack.datasheet.efficiency[f"memory_bound.{name}" + (".autocast" if autocast else "")]
        counted = cuda_counts.traffic(composite, 1, 2, backward=backward, autocast=autocast)
        assert found.traffic * least == pytest.approx(counted.n_bytes, rel=1e-3), name
        assert found.special * least / 2 == pytest.approx(counted.n_special, rel=1e-3), name
        # a layer has two sums, and four products whose weights are cast
        assert found.calls == counted.n_kernels * (4 if composite == "weights" else 1), name


@lru_cache(maxsize=1)
def _runs() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((H100 / "step_profile.json").read_text())["runs"]
    return found


def calls(run: tuple[str, int, str], op: str, *sizes: int) -> float:
    """Return how often a step calls an operator whose first shape is of these sizes, sequences of 1024 tokens first."""
    profile = next(r for r in _runs() if (r["model"], r["micro_batch"], r["precision"]) == run)
    start = f"[[{', '.join(map(str, (run[1], 1024, *sizes)))}]" if sizes else "["
    return float(sum(o["count"] for o in profile["ops"] if o["op"] == op and o["shapes"].startswith(start)))


def kernels(composite: str, *, autocast: bool = False) -> float:
    """Return the kernels of one layer's composite, forward and backward."""
    both = [cuda_counts.traffic(composite, 1, 2, backward=back, autocast=autocast) for back in (False, True)]
    return sum(traffic.n_kernels for traffic in both)


def test_a_profile_shows_as_many_kernels() -> None:
    gated = sum(calls(NARROW, op, NEURONS) for op in ("aten::silu", "aten::mul", "aten::silu_backward"))
    turned = calls(NARROW, "aten::copy_", HEADS, 64) + calls(NARROW, "aten::mul", HEADS, 32)
    # the table is conjugated each time; three gradients are joined: of two halves, of queries and keys, of all heads
    joined, tables = calls(NARROW, "aten::cat"), LAYERS
    assert gated + turned + joined + tables == LAYERS * (kernels("gate") + kernels("rope") + 1)


def test_autocast_changes_types_as_often_as_counted() -> None:
    stream, n_norms = calls(MIXED, "aten::copy_", WIDTH), 2 * LAYERS + 1
    # the last norm's gradient meets no sum
    assert stream == n_norms * kernels("casts", autocast=True) - 1
    assert calls(MIXED, "aten::add", WIDTH) + calls(MIXED, "aten::add_", WIDTH) == 2 * LAYERS * kernels(
        "add", autocast=True
    )
    assert calls(NARROW, "aten::copy_", WIDTH) == 0

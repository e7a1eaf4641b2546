"""What leaving a device out of a fit misses, as the stack files state it."""

from __future__ import annotations

import pytest

from sandtable.hardware import Stack, library


@pytest.mark.parametrize(
    ("software", "kind", "bound"),
    [("vllm", "gemm", 0.13), ("sglang", "gemm", 0.105), ("trtllm", "gemm", 0.11), ("cublas", "gemm", 0.085)],
)
def test_a_device_left_out(software: str, kind: str, bound: float) -> None:
    """The stack files state what leaving one device out at a time missed when they were fitted."""
    stack = library.load_component("stack", software)
    assert isinstance(stack, Stack)
    assert stack.fitted is not None
    evidence = stack.fitted.operators[kind][software].evidence
    assert evidence.held_out_median_abs_error_frac is not None
    assert evidence.held_out_median_abs_error_frac < bound

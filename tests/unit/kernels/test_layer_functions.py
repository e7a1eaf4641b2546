"""Norms, gates and rotary positions with backward passes of their own, beside the plain operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="these are PyTorch's")
layer_functions = pytest.importorskip("sandtable_kernels.pytorch.layer_functions")

B, T, D, H, K, E = 2, 5, 24, 4, 2, 6


def plain_norm(x: Any, gain: Any) -> Any:
    return torch.nn.functional.rms_norm(x, (D,), gain, layer_functions.NORM_EPS)


def plain_heads(joint: Any, angles: Any) -> Any:
    turned, v = joint.split((H + K, K), dim=2)
    pairs = torch.view_as_complex(turned.float().unflatten(-1, (-1, 2)))
    return *torch.view_as_real(pairs * angles).flatten(-2).to(joint.dtype).split((H, K), dim=2), v


def plain_gate(joint: Any) -> Any:
    left, right = joint.chunk(2, dim=-1)
    return torch.nn.functional.silu(left) * right


def cases(dtype: Any) -> dict[str, tuple[Callable[..., Any], Callable[..., Any], tuple[Any, ...]]]:
    angles = torch.polar(torch.ones(T, 1, E // 2), torch.randn(T, 1, E // 2))
    return {
        "norm": (
            layer_functions.rms_norm,
            plain_norm,
            (leaf(B, T, D, dtype=dtype), leaf(D, dtype=dtype)),
        ),
        "norm of strided rows": (
            lambda x, gain: layer_functions.rms_norm(x[:, ::2], gain),
            lambda x, gain: plain_norm(x[:, ::2], gain),
            (leaf(B, T, D, dtype=dtype), leaf(D, dtype=dtype)),
        ),
        "heads": (
            lambda joint: layer_functions.turned_heads(joint, angles, H, K),
            lambda joint: plain_heads(joint, angles),
            (leaf(B, T, H + 2 * K, E, dtype=dtype),),
        ),
        "gate": (layer_functions.silu_gated, plain_gate, (leaf(B, T, 2 * D, dtype=dtype),)),
    }


def leaf(*size: int, dtype: Any) -> Any:
    return torch.randn(*size).to(dtype).requires_grad_()


def passed(call: Callable[..., Any], leaves: tuple[Any, ...], *, expanded: bool) -> list[Any]:
    """Return results and gradients of all leaves, from gradients that lie anyhow."""
    outputs = call(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    if expanded:  # as those of a sum are
        gradients = [torch.ones(()).to(out.dtype).expand(out.shape) for out in outputs]
    else:
        gradients = [torch.linspace(-1, 1, out.numel()).to(out.dtype).view(out.shape) for out in outputs]
    return [*outputs, *torch.autograd.grad(outputs, leaves, gradients)]


@pytest.mark.parametrize("expanded", [False, True])
@pytest.mark.parametrize("name", ["norm", "norm of strided rows", "heads", "gate"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("bfloat16", 1.6e-2)])
def test_results_and_gradients_are_those_of_the_plain_operators(
    name: str, dtype: str, tolerance: float, expanded: bool
) -> None:
    torch.manual_seed(1)
    ours, theirs, leaves = cases(getattr(torch, dtype))[name]
    found, wanted = (passed(call, leaves, expanded=expanded) for call in (ours, theirs))
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def test_autocast_leaves_types_as_it_does_with_plain_operators() -> None:
    x, gain = leaf(B, T, D, dtype=torch.float32), leaf(D, dtype=torch.float32)
    joint = leaf(B, T, 2 * D, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer_functions.rms_norm(x, gain).dtype == plain_norm(x, gain).dtype
        assert layer_functions.silu_gated(joint).dtype == plain_gate(joint).dtype


def test_a_norm_keeps_its_input_and_a_number_per_row() -> None:
    kept: list[int] = []
    x, gain = leaf(B, T, D, dtype=torch.float32), leaf(D, dtype=torch.float32)

    def keep(tensor: Any) -> Any:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer_functions.rms_norm(x, gain)
    assert sorted(kept) == sorted([B * T * D, D, B * T])

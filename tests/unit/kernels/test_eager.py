"""What `eager` counts is what PyTorch's dispatcher launches, and what the stack file states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sandtable.demand.operator_shapes import MemoryBoundShape
from sandtable.hardware import Stack, library
from sandtable_kernels.pytorch import eager

torch = pytest.importorskip("torch", reason="counts are read off PyTorch's dispatcher")
layer_functions = pytest.importorskip("sandtable_kernels.pytorch.layer_functions")

N, D, HEAD, VOCABULARY = 48, 64, 32, 96
# operators that move nothing: they only look at memory in another way, or take it
VIEWS = {
    "_conj",
    "_unsafe_view",
    "alias",
    "as_strided",
    "detach",
    "empty_like",
    "expand",
    "new_empty",
    "select",
    "slice",
    "split",
    "split_with_sizes",
    "squeeze_",
    "t",
    "transpose",
    "unsqueeze",
    "view",
    "view_as_complex",
    "view_as_real",
}


def counted(run: Callable[[], Any]) -> tuple[int, int]:
    """Return (bytes, kernels) of everything that ``run`` launches."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    totals = [0, 0]

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if func.overloadpacket.__name__ not in VIEWS:
                # where a result is handed in or copied to, it is written alone: as what is returned
                read = args[1:] if func.overloadpacket.__name__ == "copy_" else args
                tensors = [leaf for leaf in tree_leaves((read, out)) if isinstance(leaf, torch.Tensor)]
                # an in-place operator returns what it was given: it reads and writes it
                totals[0] += sum(t.numel() * t.element_size() for t in tensors)
                totals[1] += 1
            return out

    with Count():
        run()
    return totals[0], totals[1]


def both(forward: Callable[..., Any], *leaves: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the counts of a forward pass and of its backward pass."""
    found: list[Any] = []
    first = counted(lambda: found.append(forward(*leaves)))
    outputs = found[0] if isinstance(found[0], tuple) else (found[0],)
    gradients = [torch.randn_like(output) for output in outputs]
    return first, counted(lambda: torch.autograd.backward(outputs, gradients))


def leaf(*size: int) -> Any:
    return torch.randn(*size, requires_grad=True)


TOKENS = torch.arange(N)
TURN = torch.polar(torch.ones(N, 1, HEAD // 2), torch.randn(N, 1, HEAD // 2))


CASES: dict[str, tuple[Callable[..., Any], Callable[[], tuple[Any, ...]], Callable[[bool], eager.Traffic]]] = {
    "norm": (
        layer_functions.rms_norm,
        lambda: (leaf(N, D), leaf(D)),
        lambda back: eager.norm(N, D, 4, backward=back),
    ),
    "gate": (
        layer_functions.silu_gated,
        lambda: (leaf(N, 2 * D),),
        lambda back: eager.gate(N, D, 4, backward=back),
    ),
    "rope": (
        lambda joint: layer_functions.turned_heads(joint, TURN, D // HEAD, D // HEAD),
        # several sequences share the table of angles
        lambda: (leaf(8, N, 3 * D // HEAD, HEAD),),
        lambda back: eager.rope(8 * N, 2 * D, D, 4, backward=back),
    ),
    "embedding": (
        lambda table: torch.nn.functional.embedding(TOKENS, table),
        lambda: (leaf(VOCABULARY, D),),
        lambda back: eager.embedding(N, D, VOCABULARY, 4, backward=back),
    ),
    "cross entropy": (
        lambda x: torch.nn.functional.cross_entropy(x, TOKENS),
        lambda: (leaf(N, VOCABULARY),),
        lambda back: eager.cross_entropy(N, VOCABULARY, 4, backward=back),
    ),
}


# a lookup is given a whole table, and touches a row per token
TOLERANCE = {"embedding": 0.7, "cross entropy": 0.4}


@pytest.mark.parametrize("name", CASES)
def test_counts_are_those_of_the_dispatcher(name: str) -> None:
    forward, leaves, traffic = CASES[name]
    for back, (n_bytes, n_kernels) in zip((False, True), both(forward, *leaves()), strict=True):
        wanted = traffic(back)
        # columns of one number per token, gradients of a gain, and a loss are left out
        assert wanted.n_bytes == pytest.approx(n_bytes, rel=TOLERANCE.get(name, 0.15)), f"backward: {back}"
        assert wanted.n_kernels == pytest.approx(n_kernels, abs=2), f"backward: {back}"


def test_a_sum_reads_two_and_writes_one() -> None:
    x, y = torch.randn(N, D), torch.randn(N, D)
    traffic = eager.add(N, D, 4)
    assert counted(lambda: x + y) == (traffic.n_bytes, traffic.n_kernels)


def test_traffic_adds_up() -> None:
    one = eager.gate(N, D, 4)
    assert one + one == one.times(2)
    assert one.shape == MemoryBoundShape(one.n_bytes, one.n_kernels, one.n_special)


def test_the_stack_file_states_these_counts() -> None:
    """The stack gives them against the least bytes that a plan counts (`training.step_demand`)."""
    stack = library.load_component("stack", "pytorch_cpu")
    assert isinstance(stack, Stack)
    table = stack.datasheet.efficiency
    rows = [
        ("norm", 2, eager.norm(1, 1, 4)),
        ("norm backward", 3, eager.norm(1, 1, 4, backward=True)),
        ("activation", 3, eager.gate(1, 1, 4)),
        ("activation backward", 5, eager.gate(1, 1, 4, backward=True)),
        ("rope", 2, eager.rope(1, 1, 0.5, 4)),
        ("rope backward", 2, eager.rope(1, 1, 0.5, 4, backward=True)),
        ("loss", 1, eager.cross_entropy(1, 1, 4)),
        ("loss backward", 2, eager.cross_entropy(1, 1, 4, backward=True)),
    ]
    for name, passes, traffic in rows:
        found = table[f"memory_bound.{name}"]
        assert found.traffic * passes == pytest.approx(traffic.n_bytes / 4, rel=0.01), name
        assert found.calls == traffic.n_kernels, name
        assert found.special * passes == pytest.approx(traffic.n_special, rel=0.01), name

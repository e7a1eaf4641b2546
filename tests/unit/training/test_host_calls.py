"""What the host does for a layer beside starting kernels: views and calls of modules, as the stack file counts them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sandtable.hardware import Stack, library
from sandtable_workloads.training.training_parameters import SlmTraining

torch = pytest.importorskip("torch", reason="a model is run")
from sandtable_workloads.training.executed.decoder import Decoder  # noqa: E402

VIEWS = {
    "view",
    "_unsafe_view",
    "t",
    "transpose",
    "split",
    "split_with_sizes",
    "view_as_complex",
    "view_as_real",
    "_conj",
}


def counted(work: Callable[[], Any]) -> float:
    """Return how many views ``work`` takes, those that autograd makes for itself left out."""
    from torch.utils._python_dispatch import TorchDispatchMode

    found: list[str] = []

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    with Counting():
        work()
    return float(sum(name in VIEWS for name in found))


def calls(n_layers: int) -> tuple[float, float]:
    """Return views and calls of modules of a forward pass, and views and kept gradients of a backward pass."""
    fields = {"model": "tiny_4x128", "sequence_tokens": 64, "precision": "bfloat16"}
    shape = SlmTraining.model_validate(fields).shape.model_copy(update={"n_layers": n_layers})
    model = Decoder(shape, sequence_tokens=64, core="flash", checkpointing="none").to(torch.bfloat16)
    tokens, modules, losses = torch.zeros(1, 64, dtype=torch.int64), [], []
    # its tables are made once
    model(tokens, tokens)
    for module in model.modules():
        module.register_forward_hook(lambda *_: modules.append(1))
    forward = counted(lambda: losses.append(model(tokens, tokens)))
    backward = counted(losses[0].backward)
    return forward + len(modules), backward + len(list(model.parameters()))


def test_views_and_modules_are_those_of_the_executed_model() -> None:
    stack = library.load_component("stack", "pytorch_cuda")
    assert isinstance(stack, Stack)
    few, more = calls(2), calls(4)
    for section, one, other in zip(("forward", "backward"), few, more, strict=True):
        stated = stack.datasheet.efficiency[f"host.{section}"].calls_per_layer
        assert stated == pytest.approx((other - one) / 2, rel=0.2), section

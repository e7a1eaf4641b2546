"""What a step that decodes, or a pass that scores, launches on a CPU is what PyTorch dispatches for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from sandtable import units
from sandtable.hardware import library
from sandtable_workloads.rlhf.rlhf_demand import Engine, scoring_passes
from sandtable_workloads.rlhf.rlhf_parameters import Rlhf
from sandtable_workloads.training.step_demand import Demand
from sandtable_workloads.transformer.presets import shape_for

torch = pytest.importorskip("torch", reason="kernels are counted as PyTorch dispatches them")

MODEL, ROWS, PROMPT, ANSWER = "tiny_3x64", 16, 8, 12
# what moves nothing: other views of the same storage
VIEWS = {
    "_unsafe_view",
    "alias",
    "as_strided",
    "chunk",
    "detach",
    "empty",
    "expand",
    "new_empty",
    "permute",
    "reshape",
    "select",
    "slice",
    "split",
    "split_with_sizes",
    "squeeze",
    "t",
    "transpose",
    "unbind",
    "unflatten",
    "unsqueeze",
    "view",
    "view_as_complex",
    "view_as_real",
}
# one call that runs as several kernels
WITHIN = {"rms_norm": 6}


def dispatched(call: Callable[[], Any]) -> int:
    from torch.utils._python_dispatch import TorchDispatchMode

    found: Counter[str] = Counter()

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found[func.__name__.split(".")[0]] += 1
            return func(*args, **(kwargs or {}))

    with Counting():
        call()
    return sum(n * WITHIN.get(name, 1) for name, n in found.items() if name not in VIEWS)


def views_of_a_layer(step: Callable[[Any], Any], n_layers: int) -> float:
    """Count what moves nothing in each layer: views as PyTorch dispatches them, and calls of modules."""
    from torch.nn.modules.module import register_module_forward_pre_hook
    from torch.utils._python_dispatch import TorchDispatchMode

    found: Counter[str] = Counter()

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found[func.__name__.split(".")[0]] += 1
            return func(*args, **(kwargs or {}))

    handle = register_module_forward_pre_hook(lambda module, _: found.update([type(module).__name__]))
    with Counting():
        step(torch.zeros(ROWS, 1, dtype=torch.long))
    handle.remove()
    modules = found["Linear"] + found["RMSNorm"] + found["FeedForward"]
    return (sum(found[name] for name in VIEWS) + modules) / n_layers


def planned(demands: Sequence[Demand]) -> float:
    return sum(float(getattr(demand.shape, "n_kernels", 1.0)) * float(demand.times) for demand in demands)


def campaign() -> Rlhf:
    values = {
        "model": MODEL,
        "precision": "float32",
        "batching": "shrinking",
        "logits": "answers",
        "padding": "end",
    }
    batches = {"rollout_batch": ROWS, "train_batch": ROWS, "prompt_tokens": PROMPT, "answer_tokens": ANSWER}
    return Rlhf.model_validate(values | batches, context=units.AT_EDGE)


def test_kernels_of_a_step_that_decodes() -> None:
    from sandtable_workloads.rlhf.aligned.cached_generation import Sampling, _Batch, uniforms
    from sandtable_workloads.rlhf.aligned.policy_model import Policy

    policy = Policy(shape_for(MODEL, PROMPT + ANSWER), PROMPT + ANSWER)
    policy.initialise(1)
    prompts = [[1] * PROMPT for _ in range(ROWS)]
    sampling = Sampling(max_tokens=ANSWER, end=-1, temperature=0.7)
    with torch.inference_mode():
        wanted = torch.full((ROWS,), ANSWER)
        batch = _Batch(policy, prompts, uniforms(ROWS, ANSWER, 1), sampling, wanted)
        batch.step()
        counted = dispatched(batch.step)
        views = views_of_a_layer(batch.cache.advance, policy.shape.n_layers)
    engine = Engine(campaign(), library.load_machine("laptop_pcie4", {"stack": "pytorch_cpu"}))
    demands = engine.decode(ROWS, PROMPT + 2)
    assert planned([each for each in demands if each.name != "views"]) == pytest.approx(counted, rel=0.1)
    # beside those of the layers there are few
    own = next(each for each in demands if each.name == "views")
    assert own.shape.n_kernels == pytest.approx(views, abs=1.5)


def test_kernels_of_a_pass_that_scores() -> None:
    from sandtable_workloads.rlhf.aligned.policy_model import Answered, Policy, log_probs

    policy = Policy(shape_for(MODEL, PROMPT + ANSWER), PROMPT + ANSWER)
    policy.initialise(1)
    lengths = torch.full((ROWS,), ANSWER)
    answered = Answered(torch.zeros(ROWS, PROMPT + ANSWER, dtype=torch.long), torch.full((ROWS,), PROMPT), lengths)
    with torch.no_grad():
        log_probs(policy, answered, 0.7)  # makes rotary tables, once
        counted = dispatched(lambda: log_probs(policy, replace(answered), 0.7))
    machine = library.load_machine("laptop_pcie4", {"stack": "pytorch_cpu"})
    passes = scoring_passes(campaign(), machine, "policy", sequences=ROWS, micro=ROWS, tokens=PROMPT + ANSWER)
    assert planned(passes.forward) == pytest.approx(counted, rel=0.15)

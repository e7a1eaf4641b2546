"""A campaign run for real: what is refused, what is recorded, and the soup from files beside the one in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sandtable.errors import ConfigError
from sandtable.hardware import Machine
from sandtable.workload.seam import ExecutionContext
from sandtable_workloads.rlhf.answer_lengths import drawn
from sandtable_workloads.rlhf.rlhf import RlhfWorkload
from sandtable_workloads.rlhf.rlhf_parameters import Rlhf

torch = pytest.importorskip("torch", reason="campaigns run in PyTorch")

from sandtable_workloads.rlhf import rlhf_run  # noqa: E402
from sandtable_workloads.rlhf.aligned.alignment_pipeline import averaged  # noqa: E402
from sandtable_workloads.rlhf.aligned.cached_generation import Cache  # noqa: E402
from sandtable_workloads.rlhf.aligned.policy_model import Policy  # noqa: E402

TINY: dict[str, Any] = RlhfWorkload().example() | {"reference": "sft", "model": "tiny_2x32"}


def context(folder: Path) -> ExecutionContext:
    return ExecutionContext(folder=folder, n_threads=1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "dpo"}, "parameters.method: dpo is simulated only; write ppo"),
        ({"devices": 2}, "parameters.devices: 2 is simulated only"),
        ({"precision": "mixed_bfloat16"}, "parameters.precision: .* write float32"),
        ({"adapter": "lora", "precision": "float32"}, "parameters.adapter: lora"),
        ({"batching": "continuous"}, "parameters.batching: continuous is simulated only; write shrinking"),
        ({"logits": "all"}, "parameters.logits: all is simulated only; write answers"),
        ({"packing": True}, "parameters.packing: True is simulated only; write false"),
        ({"model": "gpt2"}, "parameters.model: gpt_2_124m has .* only Llama-style models are executed"),
    ],
)
def test_what_is_simulated_only_is_refused(
    changes: dict[str, Any], said: str, machine: Machine, tmp_path: Path
) -> None:
    parameters = Rlhf.model_validate(TINY | changes)
    with pytest.raises(ConfigError, match=said):
        RlhfWorkload().prepare(parameters, machine, 1, context(tmp_path))


def test_answers_have_the_lengths_of_the_plan(machine: Machine, tmp_path: Path, monkeypatch: Any) -> None:
    parameters, rows = Rlhf.model_validate(TINY | {"sft_samples": 0, "reward_pairs": 0}), []
    advance = Cache.advance

    def watched(self: Cache, tokens: Any) -> Any:
        rows.append(tuple(tokens.shape))
        return advance(self, tokens)

    monkeypatch.setattr(Cache, "advance", watched)
    found = rlhf_run.run_rlhf(parameters, machine, 1, context(tmp_path))
    lengths = drawn(parameters, 1)
    # one pass over the prompts, then one a token; and one iteration more, in which memory is counted
    assert rows.count((parameters.rollout_batch, int(lengths.prompts.max()))) == 2
    assert len(rows) == 2 * int(lengths.answers.max())
    assert [step.name for step in found.steps] == ["iteration"]
    step = found.steps[0]
    sections = sum(step.counters[f"{name}_s"] for name in ("rollout", "scoring", "update"))
    assert sections == pytest.approx(step.total_s)


def test_weights_survive_their_file(tmp_path: Path) -> None:
    shape = Rlhf.model_validate(TINY).shape
    first, second = Policy(shape, 16), Policy(shape, 16)
    first.initialise(1)
    second.initialise(2)
    rlhf_run.write_weights(tmp_path / "one.safetensors", first)
    rlhf_run.read_weights(tmp_path / "one.safetensors", second)
    for name, weights in first.state_dict().items():
        assert torch.equal(weights, second.state_dict()[name])


@pytest.mark.parametrize("alpha", [0.5, 0.3])
def test_a_soup_in_memory_is_that_of_the_files(alpha: float, tmp_path: Path) -> None:
    pytest.importorskip("numba", reason="sums of soups are compiled")
    from sandtable_workloads.rlhf.soups import soup

    shape = Rlhf.model_validate(TINY).shape
    models = [Policy(shape, 16), Policy(shape, 16)]
    paths = [tmp_path / f"{number}.safetensors" for number in range(2)]
    for number, (path, model) in enumerate(zip(paths, models, strict=True)):
        model.initialise(number)
        rlhf_run.write_weights(path, model)
    soup(paths, tmp_path / "soup.safetensors", [alpha, 1 - alpha])
    of_files = Policy(shape, 16)
    rlhf_run.read_weights(tmp_path / "soup.safetensors", of_files)
    in_memory = averaged(models[0], models[1], alpha)
    for name, weights in in_memory.state_dict().items():
        torch.testing.assert_close(weights, of_files.state_dict()[name], rtol=1e-6, atol=1e-8)

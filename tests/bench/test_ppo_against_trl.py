"""PPO beside TRL's PPO trainer: the same tiny models, batches, lengths and epochs, in turn on one thread.

Run with ``SANDTABLE_BENCH=1 pytest -s tests/bench/test_ppo_against_trl.py``. ``make bench`` installs TRL in
``.venv-trl``: the last versions that have a PPO trainer go with other versions of what they need. Another Python that
has it is named by SANDTABLE_TRL. Both draw answers of the full length, with every step's prompts new and as long.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="PPO is PyTorch's")

from sandtable_kernels.pytorch.torch_pool import keep_memory  # noqa: E402
from sandtable_workloads.rlhf.aligned.alignment_settings import Ppo  # noqa: E402
from sandtable_workloads.rlhf.aligned.cached_generation import Sampling  # noqa: E402
from sandtable_workloads.rlhf.aligned.policy_model import Judge, Policy  # noqa: E402
from sandtable_workloads.rlhf.aligned.ppo_phase import Optimisation, RewardModel, Setting, frozen  # noqa: E402
from sandtable_workloads.training.executed.device import CpuDevice  # noqa: E402
from sandtable_workloads.transformer.shapes import ModelShape  # noqa: E402

pytestmark = pytest.mark.skipif(os.environ.get("SANDTABLE_BENCH") != "1", reason="set SANDTABLE_BENCH=1 to time")

ROOT = Path(__file__).resolve().parents[2]
TRL = Path(os.environ.get("SANDTABLE_TRL", ROOT / ".venv-trl" / "bin" / "python"))
WORK = {
    "layers": 2,
    "width": 64,
    "heads": 4,
    "neurons": 176,
    "vocabulary": 768,
    "batch": 64,
    "prompt": 8,
    "answer": 16,
    "epochs": 2,
    "iterations": 12,
}
SKIPPED = 4  # first iterations are slower
LEAST = 2.0
ROUNDS = 3
CHILD = """
import json, sys, time
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl.experimental.ppo import PPOConfig, PPOTrainer

w, folder = json.loads(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
torch.manual_seed(1)
words = {str(i): i for i in range(w["vocabulary"])}
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="1")), pad_token="0", eos_token="2", unk_token="1",
    padding_side="left",
)
config = LlamaConfig(
    vocab_size=w["vocabulary"], hidden_size=w["width"], intermediate_size=w["neurons"],
    num_hidden_layers=w["layers"], num_attention_heads=w["heads"], num_key_value_heads=w["heads"],
    max_position_embeddings=64, tie_word_embeddings=True, pad_token_id=0, eos_token_id=2, bos_token_id=1, num_labels=1,
)
policy, reference = LlamaForCausalLM(config), LlamaForCausalLM(config)
reference.load_state_dict(policy.state_dict())
critic, reward = LlamaForSequenceClassification(config), LlamaForSequenceClassification(config)
n = w["batch"] * w["iterations"]
prompts = torch.randint(3, w["vocabulary"], (n, w["prompt"])).tolist()
ends = [time.perf_counter()]


class Clock(TrainerCallback):
    def on_step_end(self, *_, **__):
        ends.append(time.perf_counter())


PPOTrainer(
    args=PPOConfig(
        output_dir=folder, use_cpu=True, bf16=False, fp16=False, gradient_checkpointing=False, report_to="none",
        save_strategy="no", logging_strategy="no", disable_tqdm=True, num_sample_generations=0, seed=1,
        per_device_train_batch_size=w["batch"], gradient_accumulation_steps=1, num_mini_batches=1,
        num_ppo_epochs=w["epochs"], total_episodes=n, response_length=w["answer"], temperature=1.0,
        local_rollout_forward_batch_size=w["batch"], learning_rate=1e-3, kl_coef=0.05,
    ),
    processing_class=tokenizer, model=policy, ref_model=reference, reward_model=reward, value_model=critic,
    train_dataset=Dataset.from_dict({"input_ids": prompts}), eval_dataset=Dataset.from_dict({"input_ids": prompts}),
    callbacks=[Clock()],
).train()
print("ENDS " + json.dumps(ends))
"""


def theirs(folder: Path) -> list[float]:
    """Return seconds of TRL's iterations."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [str(TRL), "-c", CHILD, json.dumps(WORK), str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("ENDS "))
    ends: list[float] = json.loads(line.removeprefix("ENDS "))
    return [b - a for a, b in pairwise(ends)][SKIPPED:]


def ours() -> list[float]:
    """Return seconds of our iterations of the same."""
    shape = ModelShape(
        name="tiny",
        n_layers=WORK["layers"],
        d_model=WORK["width"],
        n_neurons=WORK["neurons"],
        n_vectors=3,
        n_heads=WORK["heads"],
        n_kv_heads=WORK["heads"],
        head_dim=WORK["width"] // WORK["heads"],
        vocabulary=WORK["vocabulary"],
    )
    n_tokens = WORK["prompt"] + WORK["answer"]
    policy, reference = Policy(shape, n_tokens), Policy(shape, n_tokens)
    critic, reward = Judge(shape, n_tokens), Judge(shape, n_tokens)
    for model in (policy, reference, critic.trunk, reward.trunk):
        model.initialise(1)
    for model in (reference, reward):
        frozen(model)
    drawn = torch.Generator().manual_seed(1)
    shape_of_prompts = WORK["iterations"], WORK["batch"], WORK["prompt"]
    prompts: Any = torch.randint(3, WORK["vocabulary"], shape_of_prompts, generator=drawn).tolist()
    lengths = torch.full((WORK["batch"],), WORK["answer"])
    ppo = Ppo(iterations=WORK["iterations"], batch=WORK["batch"], num_ppo_epochs=WORK["epochs"], kl_coef=0.05)
    setting = Setting(
        reference=reference,
        reward=RewardModel(reward),
        prompts_of=lambda number: prompts[number],
        sampling=Sampling(max_tokens=WORK["answer"], end=2),
        device=CpuDevice(),
        seed=(1,),
        lengths_of=lambda _: lengths,
    )
    phase = Optimisation(policy, critic, ppo, setting)
    figures = [phase.step(number) for number in range(WORK["iterations"])]
    return [sum(each[f"{name}_s"] for name in ("rollout", "scoring", "update")) for each in figures][SKIPPED:]


def test_an_iteration_of_ppo_is_twice_as_fast_as_trls(tmp_path: Path) -> None:
    if not TRL.is_file():
        pytest.skip(f"no TRL at {TRL}: make bench installs it")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    keep_memory()
    try:
        rounds = [(statistics.median(theirs(tmp_path)), statistics.median(ours())) for _ in range(ROUNDS)]
    finally:
        torch.set_num_threads(before)
    ratios = sorted(slow / fast for slow, fast in rounds)
    print("\niterations a second, TRL's and ours:", [f"{1 / a:.2f}, {1 / b:.2f}" for a, b in rounds])
    print("times as fast:", [f"{ratio:.2f}" for ratio in ratios])
    assert statistics.median(ratios) >= LEAST

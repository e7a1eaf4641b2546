"""Executed training beside a plain PyTorch loop of the same model, and beside Hugging Face's Trainer, in one run."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sandtable.runs import measure
from sandtable_kernels.pytorch import torch_pool
from sandtable_workloads.training.executed import launcher
from sandtable_workloads.training.executed.job import Job, read_records
from sandtable_workloads.training.executed.tokens import prepare_tokens
from sandtable_workloads.training.training_parameters import SlmTraining

pytestmark = pytest.mark.skipif("SANDTABLE_BENCH" not in os.environ, reason="set SANDTABLE_BENCH=1 to measure")
pytest.importorskip("torch", reason="training needs PyTorch")

ROUNDS = 5
STEPS, WARM_UP = 20, 5
SETTINGS = {"sequence_tokens": 128, "micro_batch": 8, "precision": "float32", "learning_rate": 1e-3}

# what one writes first: the same model and optimiser, a batch at random places, nothing measured but the step
PLAIN = """
import json, sys, time
import numpy as np, torch
from sandtable_workloads.training.executed.decoder import Decoder
from sandtable_workloads.transformer.presets import shape_named
name, tokens, batch, length, steps = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
data = np.memmap(tokens, dtype=np.uint16, mode="r")
torch.manual_seed(1)
model = Decoder(shape_named(name), sequence_tokens=length, core="flash", checkpointing="none")
model.initialise(1)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
seconds = []
for step in range(steps):
    begin = time.perf_counter()
    starts = torch.randint(len(data) - length - 1, (batch,))
    rows = torch.stack([torch.from_numpy(data[i : i + length + 1].astype(np.int64)) for i in starts])
    loss = model(rows[:, :-1], rows[:, 1:])
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    loss.item()
    seconds.append(time.perf_counter() - begin)
print(json.dumps(seconds))
"""


def executed(folder: Path, model: str, tokens: Path, n_tokens: int) -> float:
    parameters = SlmTraining(model=model, steps=STEPS, warmup_steps=WARM_UP, **SETTINGS)
    folder.mkdir()
    job = Job(
        parameters=parameters,
        seed=1,
        folder=folder,
        tokens=(tokens, n_tokens, n_tokens),
        n_threads=measure.threads(),
        profile_memory=False,
    )
    launcher.run(job)
    return float(np.median([record.total_s for record in read_records(folder, 0)][WARM_UP:]))


def plain(model: str, tokens: Path) -> float:
    arguments = [model, str(tokens), str(SETTINGS["micro_batch"]), str(SETTINGS["sequence_tokens"])]
    command = [sys.executable, "-c", PLAIN, *arguments, str(STEPS + WARM_UP)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(np.median(json.loads(done.stdout)[WARM_UP:]))


@pytest.mark.parametrize("model", ["tiny_3x64", "tiny_4x256"])
def test_executed_training_is_no_slower_than_a_plain_loop(tmp_path: Path, model: str) -> None:
    file = prepare_tokens(tmp_path, text=None, tokenizer="byte", vocabulary=256)
    ours, theirs = [], []
    for index in range(ROUNDS):
        ours.append(executed(tmp_path / f"run{index}", model, file.path, file.n_tokens))
        theirs.append(plain(model, file.path))
    ratios = np.array(theirs) / np.array(ours)
    tokens = SETTINGS["micro_batch"] * SETTINGS["sequence_tokens"]  # type: ignore[operator]
    print(
        f"\n{model}: executed {tokens / np.median(ours):.0f} tokens/s, plain loop {tokens / np.median(theirs):.0f}, "
        f"ratio {np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})"
    )
    assert np.median(ratios) >= 1.0


# steps with layers of plain operators and with ours in turn, on the same weights
LAYERS = """
import json, sys, time
import torch
import torch.nn.functional as fn
from sandtable_kernels.pytorch import layer_functions
from sandtable_workloads.training.executed.decoder import Decoder
from sandtable_workloads.transformer.presets import shape_named
name, batch, length, rounds = sys.argv[1], *map(int, sys.argv[2:])
shape = shape_named(name)
model = Decoder(shape, sequence_tokens=length, core="flash", checkpointing="none")
model.initialise(1)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
rows = torch.randint(0, shape.vocabulary, (batch, length + 1))
def norm(x, gain):
    return fn.rms_norm(x, (x.shape[-1],), gain, layer_functions.NORM_EPS)
def gate(joint):
    left, right = joint.chunk(2, dim=-1)
    return fn.silu(left) * right
def heads(joint, turn, h, k):
    turned, v = joint.split((h + k, k), dim=2)
    pairs = torch.view_as_complex(turned.float().unflatten(-1, (-1, 2)))
    return *torch.view_as_real(pairs * turn).flatten(-2).to(joint.dtype).split((h, k), dim=2), v
names = ("rms_norm", "silu_gated", "turned_heads")
layers = {True: [getattr(layer_functions, name) for name in names], False: [norm, gate, heads]}
seconds = {True: [], False: []}
for step in range(2 * rounds):
    own = step % 2 == 0
    for name, function in zip(names, layers[own]):
        setattr(layer_functions, name, function)
    begin = time.perf_counter()
    model(rows[:, :-1], rows[:, 1:]).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    seconds[own].append(time.perf_counter() - begin)
print(json.dumps([seconds[True][4:], seconds[False][4:]]))
"""


@pytest.mark.parametrize(("model", "batch", "length"), [("tiny_4x128", 8, 128), ("tiny_4x256", 8, 256)])
def test_layers_with_backward_passes_of_their_own_are_faster(model: str, batch: int, length: int) -> None:
    command = [sys.executable, "-c", LAYERS, model, str(batch), str(length), str(4 + 8 * ROUNDS)]
    environment = torch_pool.environment(measure.threads()) | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    ours, plain = (np.array(seconds) for seconds in json.loads(done.stdout))
    ratio = float(np.median(plain / ours))
    print(f"\n{model}: steps with plain operators take {ratio:.2f} times as long")
    assert ratio > 1.0


HUGGING_FACE = """
import json, sys, time
import numpy as np, torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments
from sandtable_workloads.transformer.presets import shape_named
name, tokens, batch, length, steps = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
shape = shape_named(name)
data = np.fromfile(tokens, dtype=np.uint16).astype(np.int64)
rows = [data[i : i + length] for i in range(0, len(data) - length, length)]
model = LlamaForCausalLM(LlamaConfig(
    vocab_size=shape.vocabulary, hidden_size=shape.d_model, intermediate_size=shape.n_neurons,
    num_hidden_layers=shape.n_layers, num_attention_heads=shape.n_heads, max_position_embeddings=length))
times = []
class Clock(TrainerCallback):
    def on_step_begin(self, *a, **k): times.append(-time.perf_counter())
    def on_step_end(self, *a, **k): times[-1] += time.perf_counter()
Trainer(
    model=model,
    args=TrainingArguments("/tmp/unused", per_device_train_batch_size=batch, max_steps=steps, report_to=[],
                           save_strategy="no", use_cpu=True, disable_tqdm=True, logging_strategy="no"),
    train_dataset=[{"input_ids": torch.from_numpy(row), "labels": torch.from_numpy(row)} for row in rows],
    callbacks=[Clock()],
).train()
print(json.dumps(times))
"""


def test_executed_training_is_no_slower_than_hugging_faces_trainer(tmp_path: Path) -> None:
    if importlib.util.find_spec("transformers") is None or importlib.util.find_spec("accelerate") is None:
        pytest.skip("transformers and accelerate are not installed: nothing to compare with")
    model = "tiny_4x128"
    file = prepare_tokens(tmp_path, text=None, tokenizer="byte", vocabulary=256)
    ours, theirs = [], []
    for index in range(ROUNDS):
        ours.append(executed(tmp_path / f"run{index}", model, file.path, file.n_tokens))
        arguments = [model, str(file.path), str(SETTINGS["micro_batch"]), str(SETTINGS["sequence_tokens"])]
        command = [sys.executable, "-c", HUGGING_FACE, *arguments, str(STEPS + WARM_UP)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        theirs.append(float(np.median(json.loads(done.stdout.splitlines()[-1])[WARM_UP:])))
    ratio = float(np.median(np.array(theirs) / np.array(ours)))
    print(f"\n{model}: {ratio:.2f} times as many tokens/s as Hugging Face's Trainer")
    assert ratio >= 1.0

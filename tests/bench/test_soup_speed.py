"""Soups of 7B-shaped float16 checkpoints: how fast of what the disk reads, in how much memory, and beside mergekit.

Run with ``SANDTABLE_BENCH=1 pytest -s tests/bench/test_soup_speed.py``. Two checkpoints in the shapes of Llama 2 7B are
written where tests write, with as many layers as a quarter of the free disk and of the memory holds. ``make bench``
installs mergekit in ``.venv-mergekit``, since it pins what others need newer; another one is named by
SANDTABLE_MERGEKIT.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sandtable.demand.kernel import KernelContext
from sandtable.demand.plan import Phase, Plan, Step
from sandtable.engine.simulation import run
from sandtable.engine.world import Options
from sandtable.hardware import Estimate, Machine
from sandtable.model.cost_model import CostModel
from sandtable.system import limits
from sandtable_kernels.files import buffers, container
from sandtable_kernels.files.reader import FlashReader
from sandtable_kernels.operations.memory_moves import Copy
from sandtable_workloads.rlhf.soups.checkpoint_files import INDEX, header_of
from sandtable_workloads.rlhf.soups.soup_demand import soup_ops

pytest.importorskip("numba", reason="sums are compiled")
pytestmark = pytest.mark.skipif(os.environ.get("SANDTABLE_BENCH") != "1", reason="set SANDTABLE_BENCH=1 to time")

ROOT = Path(__file__).resolve().parents[2]
MERGEKIT = Path(os.environ.get("SANDTABLE_MERGEKIT", ROOT / ".venv-mergekit" / "bin" / "mergekit-yaml"))
D, NEURONS, TOKENS, LAYERS = 4096, 11008, 32000, 32
SHARD_BYTES = 5e9
REPEATS = 3
HELD = "memory of the process"
# of the disk's rate of reading in order, counted on bytes of checkpoints; time over mergekit's
LEAST_OF_DISK, LEAST_OF_MERGEKIT = 0.7, 1.5
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": D,
    "intermediate_size": NEURONS,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": TOKENS,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
}
Shapes = dict[str, tuple[int, ...]]


def n_params_of(folder: Path) -> int:
    shapes = shapes_of(json.loads((folder / "config.json").read_text())["num_hidden_layers"])
    return n_bytes(shapes) // 2


def shapes_of(n_layers: int) -> Shapes:
    found: Shapes = {"model.embed_tokens.weight": (TOKENS, D)}
    for layer in range(n_layers):
        name = f"model.layers.{layer}"
        found |= {f"{name}.self_attn.{part}_proj.weight": (D, D) for part in "qkvo"}
        found |= {f"{name}.mlp.{part}_proj.weight": (NEURONS, D) for part in ("gate", "up")}
        found |= {f"{name}.mlp.down_proj.weight": (D, NEURONS)}
        found |= {f"{name}.{norm}_layernorm.weight": (D,) for norm in ("input", "post_attention")}
    return found | {"model.norm.weight": (D,), "lm_head.weight": (TOKENS, D)}


def n_bytes(shapes: Shapes) -> int:
    return sum(2 * int(np.prod(shape)) for shape in shapes.values())


def sharded(shapes: Shapes) -> list[Shapes]:
    shards: list[Shapes] = [{}]
    for name, shape in shapes.items():
        if n_bytes(shards[-1] | {name: shape}) > SHARD_BYTES:
            shards.append({})
        shards[-1][name] = shape
    return shards


def write(folder: Path, seed: int, n_layers: int) -> Path:
    folder.mkdir()
    shards = sharded(shapes_of(n_layers))
    values = np.random.default_rng(seed).normal(scale=0.02, size=16 << 20).astype(np.float16)
    names = {}
    for place, shapes in enumerate(shards, 1):
        file = f"model-{place:05}-of-{len(shards):05}.safetensors"
        names |= dict.fromkeys(shapes, file)
        with (folder / file).open("wb") as out:
            out.write(header_of(((name, "F16", shape) for name, shape in shapes.items()), {"format": "pt"}))
            left = n_bytes(shapes) // 2
            while left:
                out.write(values[:left].data)
                left -= min(left, len(values))
            out.flush()
            os.fsync(out.fileno())
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": names}))
    (folder / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": n_layers}))
    forget(folder)
    return folder


def forget(folder: Path) -> None:
    """Let the page cache forget the files of a folder."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Path]]:
    folder = tmp_path_factory.mktemp("soups")
    # mergekit holds three times a model
    room = min(shutil.disk_usage(folder).free, limits.memory_bytes()) / 4
    n_layers = max((n for n in range(1, LAYERS + 1) if n_bytes(shapes_of(n)) < room), default=0)
    if not n_layers:
        pytest.skip("no room for models of one layer")
    print(f"\n{n_layers} layers of 32, {n_bytes(shapes_of(n_layers)) / 1e9:.1f} GB a model")
    yield [write(folder / name, seed, n_layers) for seed, name in enumerate("ab")]
    shutil.rmtree(folder)


def read_rate(folder: Path) -> float:
    """Return the rate of reading files of a checkpoint in order, in bytes per second, as fast as our reader does."""
    memory = buffers.aligned_empty((256 << 20,), np.uint8)
    done, begin = 0, time.perf_counter()
    for path in sorted(folder.glob("*.safetensors")):
        with FlashReader(path, concurrency=8) as reader:
            for start in range(0, reader.n_bytes - len(memory), len(memory)):
                reader.read_sequential(start, len(memory), buffers.address(memory), chunk_bytes=4 << 20)
                done += len(memory)
    return done / (time.perf_counter() - begin)


def write_rate(folder: Path) -> float:
    """Return the rate of writing a file in order, in bytes per second, until it is on the disk."""
    piece = buffers.aligned_empty((8 << 20,), np.uint8)
    piece.view(np.uint64)[:] = np.random.default_rng(0).integers(0, 1 << 63, len(piece) // 8, np.uint64)
    size, path = 256 * len(piece), folder.with_name("written")
    begin = time.perf_counter()
    with container.replacing(path, size) as file, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda start: file.write_at(start, piece), range(0, size, len(piece))))
    seconds = time.perf_counter() - begin
    path.unlink()
    return size / seconds


def copy_rate() -> float:
    """Return the rate of copying memory with all threads, bytes read and written together."""
    context = KernelContext(folder=Path(), seed=0, n_threads=len(os.sched_getaffinity(0)))
    kernel, dims = Copy(), {"n_bytes": 128 << 20}
    with kernel.prepare(dims, context) as call:
        call()
        begin = time.perf_counter()
        for _ in range(5):
            call()
        return 5 * kernel.cost(dims).bytes_moved / (time.perf_counter() - begin)


def measured(*command: str | Path) -> tuple[float, int, str]:
    """Run a command; return its seconds, the most bytes it held, and what it printed.

    The bytes are at least those that this process held when it began.
    """
    begin = time.perf_counter()
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, command
    return time.perf_counter() - begin, usage.ru_maxrss << 10, printed


def ours(models: list[Path]) -> tuple[float, dict[str, Any]]:
    out = models[0].with_name("ours")
    command = (sys.executable, "-m", "sandtable", "soup", *models, "-o", out, "--format", "json")
    seconds, _, printed = measured(*command)
    shutil.rmtree(out)
    return seconds, {row["what"]: row["value"] for row in json.loads(printed)["rows"]}


def test_a_soup_goes_as_fast_as_the_disk_reads(models: list[Path]) -> None:
    ours(models)  # compiles, and touches the disk where it was never written
    shares = []
    for _ in range(REPEATS):
        before = read_rate(models[0])
        _, found = ours(models)
        disk = statistics.mean((before, read_rate(models[1])))
        shares.append(found["read rate"] / disk)
        print(
            f"\n{found['read rate'] / 1e9:.2f} of {disk / 1e9:.2f} GB/s ({shares[-1]:.2f}), and half of it written; "
            f"{found[HELD] / 1e6:.0f} MB resident, of which buffers {found['buffers'] / 1e6:.0f}"
        )
        assert found[HELD] < 2 * (2 * TOKENS * D) * len(models)
    assert statistics.median(shares) >= LEAST_OF_DISK


def test_a_soup_takes_as_long_as_its_operators_at_measured_rates(models: list[Path], machine: Machine) -> None:
    ours(models)
    shares = []
    for _ in range(REPEATS):
        read, write, copy = read_rate(models[0]), write_rate(models[0]), copy_rate()
        _, found = ours(models)
        n_params = n_params_of(models[0])
        predicted = seconds_at(machine, n_params, read=read, write=write, copy=copy)
        least = max(4 * n_params / read, 2 * n_params / write, 6 * n_params / copy)
        shares.append((predicted / found["time"], least / found["time"]))
        print(
            f"\nread {read / 1e9:.2f}, write {write / 1e9:.2f}, copy {copy / 1e9:.2f} GB/s: {found['time']:.1f} s; "
            f"{predicted:.1f} s predicted, {least:.1f} s if the drive reads and writes at once"
        )
    # from a drive that reads and writes in turn, as predicted, to one that does both at once
    in_turn, at_once = (statistics.median(column) for column in zip(*shares, strict=True))
    assert in_turn > 0.8
    assert at_once < 1.2


def exactly(value: float) -> Estimate[float]:
    return Estimate[float](value=value, low=value, high=value)


def seconds_at(machine: Machine, n_params: int, *, read: float, write: float, copy: float) -> float:
    """Return the time of a pass of two models on a machine with these rates, in seconds."""
    storage, memory = machine.storage, machine.memory
    assert storage.fitted is not None
    assert memory.fitted is not None
    sheet = storage.datasheet.model_copy(update={"sequential_write_bytes_per_s": write})
    fit = storage.fitted.model_copy(update={"sequential_bytes_per_s": exactly(read)})
    moved = memory.fitted.ops["copy"].model_copy(update={"bandwidth_bytes_per_s": exactly(copy)})
    parts = {
        "storage": storage.model_copy(update={"datasheet": sheet, "fitted": fit}),
        "memory": memory.model_copy(
            update={"fitted": memory.fitted.model_copy(update={"ops": memory.fitted.ops | {"copy": moved}})}
        ),
    }
    step = Step(name="soup", ops=soup_ops(n_params, 2))
    plan = Plan(workload="soup", phases=(Phase(name="soup", steps=(step,)),), main_phase="soup")
    return run(plan, CostModel(machine.model_copy(update=parts)), Options()).total_s


def test_a_soup_is_faster_than_mergekit_in_less_memory(models: list[Path], tmp_path: Path) -> None:
    if not MERGEKIT.exists():
        pytest.skip("mergekit is not installed: 'make bench' does it, or SANDTABLE_MERGEKIT names another one")
    recipe = {
        "merge_method": "linear",
        "models": [{"model": str(model), "parameters": {"weight": 0.5}} for model in models],
        "dtype": "float16",
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    out = tmp_path / "theirs"
    times, held = [], []
    for _ in range(2):
        for model in models:
            forget(model)
        options = ("--no-copy-tokenizer", "--lazy-unpickle")
        seconds, size, _ = measured(MERGEKIT, tmp_path / "recipe.yaml", out, *options)
        begin = time.perf_counter()
        os.sync()  # ours has written everything when it ends
        seconds += time.perf_counter() - begin
        shutil.rmtree(out)
        own_s, found = ours(models)
        own_size = found[HELD]
        times.append(seconds / own_s)
        held.append(size / own_size)
        print(f"\nmergekit {seconds:.0f} s, {size / 1e9:.2f} GB; ours {own_s:.1f} s, {own_size / 1e9:.2f} GB")
    assert min(times) >= LEAST_OF_MERGEKIT
    assert min(held) > 1

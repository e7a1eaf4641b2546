"""Feed mutants to what reads people's input, in process, and keep whatever is not answered as it should be.

A finding is an exception that is none of the project's own nor the operating system's, an answer that takes longer
than a bound on processor time, a sentence that is none, or a predicted number that is not finite or below zero.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import os
import random
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import mutations
import numpy as np
import numpy.typing as npt

from sandtable import api, units, yaml_files
from sandtable.errors import SandtableError
from sandtable.hardware import library
from sandtable.published import scoring
from sandtable.report import listing, rendering
from sandtable.results import Prediction
from sandtable.runs import compare
from sandtable.studies import cheapest, study
from sandtable.workload import scenarios

MOST_S = 2.0
_CLOCK = itertools.count(1)
FLASH = """\
schema: 1
name: flash
title: F
workload: flash_inference
machine: laptop_pcie4
repeats: 1
seed: 1
parameters: {geometry: opt_mini, dtype: float16, rung: bundling, window: 2, tokens: 3, cold_tokens: 1,
  prompt_tokens: 2, concurrency: 4, stream_chunk: 1 MiB, stream_concurrency: 2, resident: 50 %, active: 5 %, reuse: 0.5}
thresholds: {latency_s.p95: < 500 ms, tokens_per_s: "> 1"}
"""
TRAINING = """\
schema: 1
name: training
title: T
workload: slm_training
machine: aws_p4d_24xlarge
repeats: 1
seed: 1
parameters: {model: tiny_4x128, sequence_tokens: 128, micro_batch: 2, devices: 4, sharding: ddp, attention: flash,
  checkpointing: none, precision: bfloat16, bucket: 25 MiB, steps: 2, warmup_steps: 1, learning_rate: 0.001,
  total_tokens: 1000000, scaling_law: chinchilla}
"""
VISION = """\
schema: 1
name: vision
title: V
workload: butterfly_vision
machine: laptop_pcie4
repeats: 1
seed: 1
parameters: {network: shufflenet_v2, structure: monarch, base: 4, width: 0.5, resolution: 64, batch: 2, classes: 10,
  precision: float32, mode: training, threads: 2, steps: 2, warmup_steps: 1, momentum: 0.9, weight_decay: 1.0e-5}
"""
SUITE = """\
schema: 1
name: suite
base: ./flash.yaml
baseline: naive
axes: {rung: [naive, hybrid], window: [2, 4]}
"""
LAW = """\
form: additive
e: 1.69
a: 406.4
b: 410.7
alpha: 0.34
beta: 0.28
least_params: 70e+6
most_params: 16e+9
most_tokens: 500e+9
source: S
"""
CONFIGS: tuple[dict[str, Any], ...] = (
    {
        "model_type": "llama",
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 1000,
        "tie_word_embeddings": False,
        "rope_scaling": None,
    },
    {
        "model_type": "mixtral",
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 1000,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 500, "n_positions": 128},
)
SETTINGS = (
    *(
        "parameters.window",
        "parameters.tokens",
        "parameters.geometry",
        "parameters.rung",
        "parameters.stream_chunk",
    ),
    *("parameters.resident", "parameters.active", "parameters.trace", "parameters.model", "parameters.micro_batch"),
    *("parameters.network", "parameters.structure", "parameters.base", "parameters.width", "parameters.resolution"),
    *("parameters.devices", "parameters.precision", "parameters.total_tokens", "parameters.scaling_law", "seed"),
    *(
        "repeats",
        "machine",
        "stack",
        "name",
        "title",
        "workload",
        "thresholds.latency_s.p95",
        "thresholds",
        "schema",
    ),
    *("parameters", "machine.storage", "machine.memory", "machine.stack", "machine.price", "machine.price.hour"),
    *(
        "machine.power.idle",
        "machine.sources",
        "machine.name",
        "machine.memory.datasheet.capacity",
        "machine.network",
    ),
    *(
        "machine.accelerator",
        "machine.accelerator.n",
        "machine.storage.like",
        "machine.",
        "machine..",
        "machine.a.b",
    ),
    *("machine.storage.datasheet", "machine.price.as_of", "", ".", "a..b", "parameters."),
)
COLUMNS = (
    "",
    " ",
    "nan",
    "inf",
    "-1",
    "0",
    "1e308",
    "1e400",
    "abc",
    "1,2",
    "9" * 400,
    "0x10",
    "é",
    "\0",
    "\n",
    '"',
)


class TooSlow(BaseException):
    """The bound on processor time was passed."""


@dataclass(frozen=True, slots=True)
class Target:
    """One reader: ``make`` a mutant as bytes, and ``use`` it as a user's command would."""

    make: Callable[[random.Random], bytes]
    use: Callable[[bytes], None]


@dataclass(slots=True)
class Findings:
    """What went wrong, by kind, with the smallest input of each."""

    tried: int = 0
    refused: int = 0
    found: dict[str, tuple[str, bytes]] = field(default_factory=dict)

    def add(self, kind: str, detail: str, given: bytes) -> None:
        """Keep a finding, unless a smaller input of its kind is there already."""
        if kind not in self.found or len(given) < len(self.found[kind][1]):
            self.found[kind] = (detail, given)

    def __str__(self) -> str:
        return "\n".join(f"{kind}: {detail}\n    {given[:300]!r}" for kind, (detail, given) in self.found.items())


def fuzz(name: str, n: int, seed: int = 1) -> Findings:
    """Feed ``n`` mutants to a target; files lie in the current folder."""
    prepare()
    rng, findings = random.Random(f"{name} {seed}"), Findings()
    target = TARGETS[name]
    for _ in range(n):
        _try(target, target.make(rng), findings)
    return findings


def prepare() -> None:
    """Write what mutants are made of into the current folder."""
    for name, text in (("flash.yaml", FLASH), ("training.yaml", TRAINING), ("vision.yaml", VISION)):
        Path(name).write_text(text, encoding="utf-8")


def _try(target: Target, given: bytes, findings: Findings) -> None:
    findings.tried += 1
    begin = time.process_time()
    try:
        with _bounded(2 * MOST_S), np.errstate(all="ignore"):
            target.use(given)
    except SandtableError as error:
        findings.refused += 1
        if error.exit_code == 1 or "\n" in str(error).strip() or len(str(error)) > 1000 or not str(error).strip():
            findings.add(f"no sentence: {type(error).__name__} {_where(error)}", str(error)[:300], given)
    except OSError as error:
        findings.refused += 1
        if error.filename is None:
            findings.add(f"no sentence: {type(error).__name__} {_where(error)}", str(error)[:300], given)
    except (Exception, TooSlow) as error:
        findings.add(f"{type(error).__name__} {_where(error)}", str(error)[:300], given)
    if (taken := time.process_time() - begin) > MOST_S:
        findings.add("slow", f"{taken:.1f} s", given)


@contextmanager
def _bounded(seconds: float) -> Iterator[None]:
    def stop(signum: int, frame: FrameType | None) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _where(error: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/site-packages/" not in f.filename]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno} {frames[-1].name}"


# --- what is done with a mutant ------------------------------------------------------------------------------


def _simulate(scenario: str, settings: list[str] | None = None, machine: str | None = None) -> None:
    found = api.simulate(scenario, scenarios.changes_of(settings), machine=machine)
    _check(found.prediction)
    compare.check_thresholds(found.case.scenario.thresholds, found.prediction)


def _check(prediction: Prediction) -> None:
    rendering.render(rendering.metrics_table(prediction), "table")
    rendering.result_notes(prediction)
    for name, metric in prediction.metrics.items():
        for part in (metric.value, metric.low, metric.high):
            assert 0 <= part < math.inf, f"{name} is {part}"


def _put(name: str, given: bytes) -> str:
    Path(name).write_bytes(given)
    # as a file that was written a while later: what is read from one is kept until it changes
    os.utime(name, (next(_CLOCK), 0))
    return f"./{name}"


def _setting(given: bytes) -> None:
    base, settings = json.loads(given)
    _simulate(base, settings)


def _scenario(given: bytes) -> None:
    _simulate(_put("case.yaml", given))


def _suite(given: bytes) -> None:
    for point in itertools.islice(study.load(_put("case.yaml", given)).points(), 2):
        assert "/" not in point.name


def _device(given: bytes) -> None:
    device = listing.find_device(_put("case.yaml", given))
    rendering.render(listing.device_table(device), "table")
    yaml_files.dump_yaml(library.to_yaml_data(device))
    kind = type(device).__name__.lower()
    if kind == "machine":
        _simulate("flash.yaml", machine="./case.yaml")
    elif kind in ("storage", "memory", "processor", "stack"):
        _simulate("flash.yaml", [f"machine.{kind}=./case.yaml"])
    elif kind == "link":
        _simulate("training.yaml", ["machine.accelerator.peer_link=./case.yaml"])
    elif kind == "accelerator":
        _simulate("training.yaml", ["machine.accelerator.device=./case.yaml"])


def _config(given: bytes) -> None:
    _simulate("training.yaml", [f"parameters.model={_put('case.json', given)}", "parameters.devices=1"])


def _law(given: bytes) -> None:
    _simulate("training.yaml", [f"parameters.scaling_law={_put('law.yaml', given)}"])


def _csv(given: bytes) -> None:
    name, _, content = given.partition(b"\n")
    folder = Path(name.decode())
    folder.mkdir(exist_ok=True)
    (folder / f"{folder.name}.csv").write_bytes(content)
    report = scoring.run(folder, only=folder.name)
    assert "NaN" not in json.dumps(report.to_json())
    rendering.render(rendering.published_table(report), "table")


def _quantity(given: bytes) -> None:
    quantity, text = json.loads(given)
    for read in (
        lambda: units.parse(text, quantity),
        lambda: units.parse_count(str(text)),
        lambda: float(bool(scenarios.parse_setting(f"a={text}"))),
        lambda: float(bool(cheapest.amounts_of([f"tokens={text}"]))),
        lambda: float(bool(cheapest.limit(str(text), "s", "--within"))),
        lambda: float(bool(compare.condition("latency_s.p95", str(text)))),
    ):
        try:
            value = read()
        except ValueError as error:
            if type(error) is not ValueError:
                raise
        except SandtableError:
            pass
        else:
            assert math.isfinite(value)
            units.format_quantity(value, quantity)
            units.write(value, quantity)


def _trace(given: bytes) -> None:
    _simulate("flash.yaml", [f"parameters.trace={_put('case.npz', given)}"])


# --- how mutants are made ------------------------------------------------------------------------------------


def _yaml_mutant(rng: random.Random, text: str, keys: tuple[str, ...] = ()) -> bytes:
    chance = rng.random()
    if chance < 0.7:
        data = yaml_files.plain(yaml_files.parse_yaml(text, "seed"))
        try:
            text = yaml_files.dump_yaml(mutations.mutate_data(rng, data, keys))
        except Exception:
            text = mutations.mutate_text(rng, text)
    elif chance < 0.94:
        text = mutations.mutate_text(rng, text)
    content = text.encode("utf-8", "surrogatepass")
    return content if chance < 0.94 else mutations.mutate_bytes(rng, content)


def _json_mutant(rng: random.Random, data: Any, keys: tuple[str, ...] = ()) -> bytes:
    chance = rng.random()
    if chance < 0.85:
        try:
            return json.dumps(mutations.mutate_data(rng, data, keys)).encode()
        except ValueError:
            return b"{"
    if chance < 0.95:
        return mutations.mutate_text(rng, json.dumps(data, indent=1)).encode("utf-8", "surrogatepass")
    return mutations.mutate_bytes(rng, json.dumps(data).encode())


def _make_setting(rng: random.Random) -> bytes:
    settings = [f"{rng.choice(SETTINGS)}={mutations.value_text(rng)}" for _ in range(rng.choice([1, 1, 1, 2, 3]))]
    return json.dumps([rng.choice(["flash.yaml", "training.yaml", "vision.yaml"]), settings]).encode()


def _make_device(rng: random.Random) -> bytes:
    path = rng.choice([path for path in library.device_files().values() if path.stat().st_size < 6000])
    keys = ("variants", "measurements", "datasheet", "fitted", "sources", "accelerator", "price", "power", "like")
    return _yaml_mutant(rng, path.read_text(encoding="utf-8"), keys)


def _make_csv(rng: random.Random) -> bytes:
    names = [name for name, adapter in scoring.adapters().items() if (f := adapter.shipped()) and list(f.iterdir())]
    name = rng.choice(names)
    folder = scoring.adapters()[name].shipped()
    assert folder is not None
    head, *body = csv.reader(io.StringIO((folder / f"{name}.csv").read_text(encoding="utf-8-sig")))
    rows = [list(row) for row in rng.sample(body, min(len(body), 3))]
    for _ in range(rng.choice([1, 1, 2, 3])):
        row, chance = rng.choice(rows), rng.random()
        if chance < 0.6 and row:
            row[rng.randrange(len(row))] = rng.choice(COLUMNS)
        elif chance < 0.7:
            head[rng.randrange(len(head))] = rng.choice(["", head[0], "zzz", " " + head[0]])
        elif chance < 0.8:
            row.append("x") if rng.random() < 0.5 else row and row.pop()
        else:
            rows.append([] if chance < 0.9 else list(row))
    text = io.StringIO()
    csv.writer(text).writerows([head, *rows])
    content = text.getvalue().encode()
    return name.encode() + b"\n" + (mutations.mutate_bytes(rng, content) if rng.random() < 0.1 else content)


def _make_quantity(rng: random.Random) -> bytes:
    quantity = rng.choice(["bytes", "bytes/s", "s", "FLOP/s", "1/s", "Hz", "W", "J", "USD", "USD/h", "frac"])
    if rng.random() < 0.6:
        numbers = (
            "5",
            "1e9",
            "1e309",
            "-0",
            "1_0",
            "1__",
            "1e999999",
            ".",
            ".5",
            "5.",
            "٣",
            "9" * 400,
            "9" * 20000,
        )
        unit = rng.choice(
            ["B", "GiB", "kB/s", "s", "us", "µs", "μs", "TFLOP/s", "IOPS", "W", "USD/h", "%", "", "b", "x"]
        )
        return json.dumps([quantity, rng.choice(numbers) + rng.choice(["", " ", "\t", "\xa0"]) + unit]).encode()
    return json.dumps([quantity, mutations.value_text(rng)]).encode()


def _make_trace(rng: random.Random) -> bytes:
    arrays: dict[str, npt.NDArray[Any]] = {
        "n_layers": np.array(4),
        "n_neurons": np.array(4096),
        "ids": np.tile(np.arange(8), 32),
        "offsets": np.arange(0, 257, 8),
    }
    key, chance = rng.choice(sorted(arrays)), rng.random()
    if chance < 0.3:
        arrays[key] = np.array(rng.choice([0, -1, 2.5, 10**9, 2**62, math.nan, True, "a"]))
    elif chance < 0.4:
        del arrays[key]
    elif chance < 0.6 and arrays[key].ndim:
        arrays[key][rng.randrange(len(arrays[key]))] = rng.choice([0, -1, 10**6, 2**31 - 1])
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    return content.getvalue() if chance < 0.6 else mutations.mutate_bytes(rng, content.getvalue())


TARGETS: dict[str, Target] = {
    "setting": Target(_make_setting, _setting),
    "scenario": Target(lambda rng: _yaml_mutant(rng, rng.choice([FLASH, TRAINING, VISION])), _scenario),
    "suite": Target(lambda rng: _yaml_mutant(rng, SUITE), _suite),
    "device": Target(_make_device, _device),
    "config": Target(lambda rng: _json_mutant(rng, rng.choice(CONFIGS), tuple(CONFIGS[0])), _config),
    "law": Target(lambda rng: _yaml_mutant(rng, LAW), _law),
    "csv": Target(_make_csv, _csv),
    "quantity": Target(_make_quantity, _quantity),
    "trace": Target(_make_trace, _trace),
}

"""Skeletons that a user starts from: they load and pass their contract as they stand."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from textwrap import dedent
from typing import Any

from sandtable.errors import ConfigError, did_you_mean
from sandtable.hardware import library
from sandtable.report import described
from sandtable.system import atomic_files
from sandtable.workload import scenarios
from sandtable.workload.seam import workload_named

_DEVICES = {
    "storage": """\
        datasheet:
          interface: NVMe PCIe 4 x4
          capacity: 1 TB
          sequential_read: 7 GB/s
          random_read: 1 MIOPS        # 4 KiB, many in flight
          read_latency: 80 us         # 4 KiB, one in flight
        sources:
          datasheet: guess            # write where the numbers are from: vendor, document, revision
        """,
    "memory": """\
        datasheet:
          technology: DDR5-5600
          capacity: 64 GiB
          bandwidth: 89.6 GB/s        # all channels together
        sources:
          datasheet: guess            # write where the numbers are from: vendor, document, revision
        """,
    "processor": """\
        datasheet:
          family: cpu
          cores: 16
          clock: 3 GHz
          peak:                       # cores x clock x FLOP per cycle
            float32: 1.5 TFLOP/s
          tdp: 170 W
        sources:
          datasheet: guess            # write where the numbers are from: vendor, document, revision
        """,
    "accelerator": """\
        published_as: []              # names that the driver and published files give it
        datasheet:
          family: gpu                 # gpu, or soc_gpu: it shares the host's memory, and names that memory's file below
          cores: 108
          peak:                       # dense rates, without sparsity
            bfloat16: 312 TFLOP/s
            float32: 19.5 TFLOP/s
          tdp: 400 W
        memory:
          datasheet:
            technology: HBM2e
            capacity: 80 GiB
            bandwidth: 2039 GB/s
          sources:
            datasheet: guess
        link: pcie4_x16               # to the host
        peer_link: nvlink3            # to its equals, if not over the same
        sources:
          datasheet: guess            # write where the numbers are from: vendor, document, revision
        """,
    "link": """\
        datasheet:
          scope: host                 # host, intra_node, inter_node
          bandwidth: 31.5 GB/s        # one way, per device
          latency: 1 us
        sources:
          datasheet: guess            # write where the numbers are from: vendor, document, revision
        """,
    "machine": """\
        processor: amd_epyc_9654      # names from 'sandtable list devices', or paths of YAML files
        memory: ddr5_4800_12ch_384gib
        storage: samsung_990_pro_2tb
        power: {idle: 100 W, max: 500 W}
        price: {hour: 2 USD/h, as_of: 2026-01-01}
        sources:
          power: guess
          price: guess
        """,
}

_KERNEL = '''\
"""What this operation is, and where its cost is from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np

from sandtable.demand.kernel import Dims, Kernel, KernelContext
from sandtable.demand.op import Op


class {title}(Kernel):
    """One line about the kernel; dims: n."""

    name: ClassVar[str] = "{name}"
    calibrates: ClassVar[str | None] = None  # storage, memory or compute, to take part in calibration

    def grid(self, *, quick: bool) -> Sequence[Dims]:
        """Points at which calibration measures it."""
        return [{{"n": n}} for n in ((1 << 20,) if quick else (1 << 18, 1 << 20, 1 << 24))]

    def cost(self, dims: Dims) -> Op:
        """What one call demands."""
        n = dims["n"]
        return Op(
            name=self.name, operator="elementwise", account="compute", flops=n, bytes_read=4 * n, bytes_written=4 * n
        )

    @contextmanager
    def prepare(self, dims: Dims, context: KernelContext) -> Iterator[Callable[[], None]]:
        """Set up, and give the call that is timed."""
        x, out = self._input(dims, context), np.empty(dims["n"], np.float32)

        def call() -> None:
            np.multiply(x, np.float32(2), out=out)

        yield call

    def example(self) -> Dims:
        """Small dims for the contract test."""
        return {{"n": 1000}}

    def run(self, dims: Dims, context: KernelContext) -> np.ndarray[Any, Any]:
        """The fast path."""
        return self._input(dims, context) * np.float32(2)

    def reference(self, dims: Dims, context: KernelContext) -> np.ndarray[Any, Any]:
        """The same, plainly."""
        return self._input(dims, context) + self._input(dims, context)

    def _input(self, dims: Dims, context: KernelContext) -> np.ndarray[Any, Any]:
        return np.random.default_rng(context.seed).standard_normal(dims["n"], dtype=np.float32)
'''

_WORKLOAD = '''\
"""What this workload is."""

from __future__ import annotations

import time
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from sandtable.demand.op import Op
from sandtable.demand.plan import Phase, Plan, Step
from sandtable.engine.recorder import Recorder
from sandtable.hardware import Frozen, Machine
from sandtable.workload.seam import Execution, ExecutionContext, Workload


class {title}(Frozen):
    """Parameters."""

    n: int = Field(default=4_000_000, ge=1)
    steps: int = Field(default=5, ge=1)


class {title}Workload(Workload[{title}]):
    """Copy an array a few times."""

    name: ClassVar[str] = "{name}"
    parameters: ClassVar[type[Frozen]] = {title}

    def plan(self, parameters: {title}, machine: Machine, seed: int) -> Plan:
        """Demands, without any time in them."""
        n_bytes = 4 * parameters.n
        op = Op(name="copy", operator="copy", account="memory", bytes_read=n_bytes, bytes_written=n_bytes)
        steps = (Step(name="step", ops=(op,), repeat=parameters.steps),)
        memory = {{"arrays": 2.0 * n_bytes}}
        phases = (Phase(name="main", steps=steps),)
        return Plan(workload=self.name, phases=phases, main_phase="main", memory_bytes=memory)

    def execute(self, parameters: {title}, machine: Machine, seed: int, context: ExecutionContext) -> Execution:
        """The same, for real, reporting the same steps."""
        source, target = np.ones(parameters.n, np.float32), np.zeros(parameters.n, np.float32)
        recorder = Recorder()
        for _ in range(parameters.steps):
            start = time.perf_counter()
            np.copyto(target, source)
            seconds = time.perf_counter() - start
            recorder.record("main", {{"latency_s": seconds, "memory_s": seconds}}, name="step")
        # what is held, counted; not what the plan says of it
        return Execution(recorder=recorder, memory_bytes={{"arrays": float(source.nbytes + target.nbytes)}})

    def example(self) -> dict[str, Any]:
        """Parameters for tests."""
        return {{"n": 10_000, "steps": 2}}
'''


def write(
    what: str, name: str, *, kind: str = "storage", output: Path | None = None, like: str | None = None
) -> Path:
    """Write the skeleton of a device, scenario, kernel or workload; never over a file that exists.

    A scenario begins as the one that ``like`` names, with every parameter that it leaves out as a comment.

    Raises:
        ConfigError: a bad name, an unknown kind of device, or a file in the way.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ConfigError(
            f"{name!r} cannot be a name: use small letters, digits and underscores, such as my_device"
        )
    path = output or _default_path(what, name, kind)
    if path.exists():
        raise ConfigError("there is a file of that name already; choose another name, or -o", file=str(path))
    text = scenario_text(name, like) if what == "scenario" else _text(what, name, kind)
    atomic_files.write_atomically(path, text)
    return path


def _default_path(what: str, name: str, kind: str) -> Path:
    # a person's own devices and scenarios lie where the next command is given, not among those of the library
    if what in ("device", "scenario"):
        return Path(f"{name}.yaml")
    folder = library.root() / f"{what}s" / f"sandtable_{what}s"
    return folder / f"{name}.py" if folder.is_dir() else Path(f"{name}.py")


def scenario_text(name: str, like: str | None) -> str:
    """Return a scenario like a ready-made one: what it states, all other parameters as comments, and what they mean.

    Raises:
        UnknownName: there is no such scenario.
    """
    base = scenarios.read(like or _usual())
    workload = workload_named(base.workload)
    model = workload.parameters
    lines = [
        "schema: 1",
        f"name: {name}",
        f"title: {json.dumps(base.title, ensure_ascii=False)}  # the question that it answers",
        f"workload: {base.workload}",
        f"machine: {base.machine}  # 'sandtable list machines' shows others, --machine NAME takes one for once",
        f"{'# ' if base.stack is None else ''}stack: {base.stack or library.GENERIC_STACK}  # 'sandtable list stacks'",
        f"parameters:  # 'sandtable show {base.workload}' explains them",
    ]
    for field_name, field in model.model_fields.items():
        key = field.alias or field_name
        stated = next((base.parameters[each] for each in (key, field_name) if each in base.parameters), None)
        text = described.default_text(field_name, field) if stated is None else _scalar(stated)
        meaning = described.meaning(model, field_name, key).partition(". ")[0].rstrip(".")
        lines.append(f"  {'# ' if stated is None else ''}{key}: {'null' if text == '-' else text}  # {meaning}")
    return "\n".join(lines) + "\n"


def _scalar(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str | list | bool) else repr(value)


def _usual() -> str:
    """Return the first of the ready-made scenarios that need no calibration, of the workload that has most of them."""
    found = {name: scenarios.read(name) for name in sorted(scenarios.files())}
    found = {name: each for name, each in found.items() if each.machine != library.THIS_MACHINE}
    most = Counter(each.workload for each in found.values()).most_common(1)[0][0]
    return next(name for name, each in found.items() if each.workload == most)


def _text(what: str, name: str, kind: str) -> str:
    if what == "device":
        if kind not in _DEVICES:
            raise ConfigError(f"no skeleton for a device of kind {kind!r}{did_you_mean(kind, _DEVICES)}")
        title = name.replace("_", " ")
        return f"schema: 1\nkind: {kind}\nname: {name}\ntitle: {title}\n{dedent(_DEVICES[kind])}"
    title = "".join(part.capitalize() for part in name.split("_"))
    return (_KERNEL if what == "kernel" else _WORKLOAD).format(name=name, title=title)

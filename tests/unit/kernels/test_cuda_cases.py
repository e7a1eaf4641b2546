"""What runs on GPUs, run on the host: every case works and differs from no other, and workers that fail say how.

There need not be a GPU: the cases are PyTorch's own operators, and a host's stopwatch stands in for the device's.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sandtable.demand.kernel import Dims
from sandtable.errors import DoesNotFit, MeasureError, NoDevice
from sandtable_kernels.cuda import cuda_operators, cuda_pool, structured_operators
from sandtable_kernels.cuda.cuda_operators import CudaAttention, CudaGemm

torch = pytest.importorskip("torch", reason="PyTorch's operators need PyTorch")
from sandtable_kernels.cuda import cuda_cases, cuda_worker  # noqa: E402
from sandtable_kernels.pytorch import torch_cases  # noqa: E402

SMALL = {"m": 32, "n": 48, "k": 64, "processes": 1}
ON_A_GPU_ONLY = ("transfer", "launch", "sustained", "collective")


class Calls(torch_cases.Stopwatch):
    """A stopwatch that counts what it was asked to time."""

    def __init__(self) -> None:
        self.spans = 0

    def span(self, work: Any) -> Any:
        self.spans += 1
        return super().span(work)


@pytest.fixture
def watch() -> Iterator[Calls]:
    calls = Calls()
    torch_cases.use(calls)
    yield calls
    torch_cases.use(torch_cases.Stopwatch())


def attention(**changes: Any) -> Dims:
    fields = {"batch": 2, "query_tokens": 16, "kv_tokens": 16, "n_heads": 4, "n_kv_heads": 4, "head_dim": 32}
    return {**fields, "dtype": "float32", "flash": True, "pass": "forward", **changes}


STREAM = {"n_tokens": 32, "width": 64, "dtype": "bfloat16", "pass": "forward"}
STRUCTURED = {"rows": 16, "n": 48, "dtype": "float32"}
POINTS: list[tuple[str, Dims]] = [
    *[("gemm", {**SMALL, "dtype": dtype, "pass": "forward"}) for dtype in ("float32", "tf32", "bfloat16", "fp8")],
    *[("gemm", {**SMALL, "dtype": "bfloat16", "pass": which}) for which in ("backward_data", "backward_weight")],
    ("attention", attention()),
    ("attention", attention(**{"pass": "backward"})),
    ("attention", attention(n_kv_heads=2)),
    ("attention", attention(query_tokens=1, kv_tokens=40, n_kv_heads=2)),
    ("attention", attention(flash=False, dtype="bfloat16")),
    ("sdpa", attention()),
    ("sdpa", attention(**{"pass": "backward"})),
    ("attention", attention(flash=False, **{"pass": "backward"})),
    *[(case, STREAM) for case in ("norm", "add", "silu_gated", "cross_entropy")],
    *[(case, STREAM | {"pass": "backward"}) for case in ("norm", "silu_gated", "cross_entropy")],
    *[(case, STREAM) for case in ("widen", "narrow", "add_narrow", "cat", "turned_heads")],
    ("turned_heads", STREAM | {"pass": "backward"}),
    ("embedding", STREAM | {"vocabulary": 100}),
    ("adamw", {"n_params": 1000, "n_tensors": 4, "dtype": "float32"}),
    ("copy", {"n_bytes": 4096}),
    *[("butterfly", STRUCTURED | {"base": 4, "pass": which}) for which in ("forward", "backward")],
    *[("monarch", STRUCTURED | {"pass": which}) for which in ("forward", "backward")],
]


@pytest.mark.parametrize(("case", "dims"), POINTS, ids=lambda part: part if isinstance(part, str) else "")
def test_a_case_times_itself(case: str, dims: Dims, watch: Calls) -> None:
    call = cuda_cases.CASES[case](dims)
    assert watch.spans == 0
    seconds = call()
    assert 0 < seconds < 10
    assert watch.spans == (2 if dims.get("pass", "forward").startswith("backward") else 1)
    assert call() > 0


def test_every_case_of_a_grid_exists_and_is_tested() -> None:
    used = set()
    for kernel in (*vars(cuda_operators).values(), *vars(structured_operators).values()):
        if isinstance(kernel, type) and issubclass(kernel, cuda_operators.CudaKernel) and "name" in vars(kernel):
            for dims in kernel().grid(quick=False):  # type: ignore[abstract]
                used.add(dims.get("case", kernel.case))
    assert used == set(cuda_cases.CASES)
    assert used == {case for case, _ in POINTS} | set(ON_A_GPU_ONLY)
    assert used >= cuda_cases.COLD | cuda_cases.REPEATED


def test_copies_are_as_many_as_the_stopwatch_allows(watch: Calls) -> None:
    assert torch_cases.copies({"copies": 24}, 1 << 20) == 24
    watch.pool_bytes = 4 << 20
    assert torch_cases.copies({"copies": 24}, 1 << 20) == 4
    watch.pool_bytes = 1
    assert torch_cases.copies({"copies": 24}, 1 << 20) == torch_cases.LEAST_COPIES


def kept(watch: Calls) -> list[Any]:
    """Return the list that the first output of every timed call is put into."""
    outputs = []

    def keep(work: Any) -> Any:
        found = work()
        outputs.append(found[0][0])
        return found, 1.0

    watch.span = keep  # type: ignore[method-assign]
    return outputs


@pytest.mark.parametrize("flash", [True, False])
def test_attention_by_flash_and_by_scores_is_the_same(flash: bool, watch: Calls) -> None:
    outputs = kept(watch)
    cuda_cases.CASES["attention"](attention(flash=flash))()
    q = torch_cases.filled(2, 16, 4, 32, dtype="float32").transpose(1, 2)
    scores = (q @ q.transpose(-2, -1) * 32**-0.5).masked_fill(torch.ones(16, 16).triu(1).bool(), -torch.inf)
    assert torch.allclose(outputs[0], scores.softmax(-1) @ q, atol=1e-5)


def test_narrow_products_are_right(watch: Calls) -> None:
    outputs = kept(watch)
    cuda_cases.narrow_gemm({**SMALL, "dtype": "fp8", "pass": "forward"})()
    x, w = torch_cases.filled(32, 64, dtype="float32"), torch_cases.filled(48, 64, dtype="float32")
    error = (outputs[0].float() - x @ w.T).norm() / (x @ w.T).norm()
    assert error < 0.05


def test_old_versions_of_pytorch_and_old_gpus_say_what_they_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_cases.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda_cases.torch.cuda, "get_device_capability", lambda: (8, 0))
    with pytest.raises(cuda_cases.Unsupported, match=r"8\.9"):
        cuda_cases.gemm({**SMALL, "dtype": "fp8", "pass": "forward"})


# --- the device's stopwatch ----------------------------------------------------------------------------------


class Queue:
    """A device that notes what it is asked for; its events are two milliseconds apart."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, free: int) -> None:
        self.asked: list[str] = []
        self.waits: list[int] = []
        cuda = cuda_cases.torch.cuda
        asked, waits = self.asked, self.waits

        class Event:
            def __init__(self, *, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                asked.append("event")

            def synchronize(self) -> None:
                asked.append("wait for it")

            def elapsed_time(self, other: Event) -> float:
                return 2.0

        def wait(clocks: int) -> None:
            asked.append("hold")
            waits.append(clocks)

        real = torch.empty
        monkeypatch.setattr(cuda, "Event", Event)
        monkeypatch.setattr(cuda, "_sleep", wait, raising=False)
        monkeypatch.setattr(cuda, "current_device", lambda: 0)
        monkeypatch.setattr(cuda, "get_device_properties", lambda index: SimpleNamespace(L2_cache_size=50 << 20))
        monkeypatch.setattr(cuda, "mem_get_info", lambda: (free, free))
        monkeypatch.setattr(cuda_cases.torch, "empty", lambda n, dtype, device: real(n, dtype=dtype))


def test_cold_tensors_are_timed_after_a_write_and_behind_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue(monkeypatch, free=16 << 30)
    stopwatch = cuda_cases.CudaStopwatch(cold=True)
    assert stopwatch.pool_bytes == cuda_cases.POOL_BYTES
    assert stopwatch._flush is not None
    assert stopwatch._flush.numel() == 100 << 20
    found, seconds = stopwatch.span(lambda: time.sleep(0.01) or "done")
    assert (found, seconds) == ("done", 0.002)
    # nobody knows yet how long the host takes
    assert queue.asked == ["event", "event", "wait for it"]
    stopwatch.span(lambda: queue.asked.append("work"))
    assert queue.asked[3:] == ["hold", "event", "work", "event", "wait for it"]
    assert queue.waits[0] >= 0.01 * cuda_cases.WAIT_CLOCKS_PER_S
    # forward and backward take turns, and the longer of the two counts
    stopwatch.span(lambda: None)
    assert queue.waits[1] == queue.waits[0]
    stopwatch.span(lambda: None)
    assert queue.waits[2] < queue.waits[0]


def test_other_tensors_stay_in_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    Queue(monkeypatch, free=16 << 30)
    stopwatch = cuda_cases.CudaStopwatch(cold=False)
    assert stopwatch._flush is None
    assert stopwatch.pool_bytes == 50 << 20


def test_a_small_gpu_gives_smaller_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    Queue(monkeypatch, free=400 << 20)
    stopwatch = cuda_cases.CudaStopwatch(cold=True)
    assert stopwatch.pool_bytes == 100 << 20
    assert stopwatch._flush is not None
    assert stopwatch._flush.numel() == 50 << 20


# --- a worker's answers ------------------------------------------------------------------------------------


def refusing(error: Exception) -> Any:
    def refuse(*_: Any) -> Any:
        raise error

    return refuse


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), "memory"),
        (cuda_cases.Unsupported("needs another GPU"), "unsupported"),
        (RuntimeError("No available kernel. Aborting execution."), "unsupported"),
    ],
)
def test_a_worker_says_what_a_gpu_cannot_do(
    monkeypatch: pytest.MonkeyPatch, error: Exception, refused: str
) -> None:
    monkeypatch.setattr(cuda_worker, "samples", refusing(error))
    request = {"do": "time", "case": "gemm", "dims": {}, "repeats": 1, "budget_s": 1.0}
    assert cuda_worker.answer(request)["refused"] == refused


def test_a_worker_does_not_hide_other_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_worker, "samples", refusing(RuntimeError("illegal memory access")))
    request = {"do": "time", "case": "gemm", "dims": {}, "repeats": 1, "budget_s": 1.0}
    with pytest.raises(RuntimeError, match="illegal"):
        cuda_worker.answer(request)


def test_samples_are_as_many_as_asked_for_or_as_there_is_time_for(
    monkeypatch: pytest.MonkeyPatch, watch: Calls
) -> None:
    monkeypatch.setattr(cuda_cases, "CudaStopwatch", lambda cold: watch)
    dims = {**SMALL, "dtype": "float32", "pass": "forward"}
    assert len(cuda_worker.samples("gemm", dims, 5, 60.0)) == 5
    assert len(cuda_worker.samples("gemm", dims, 5, 0.0)) == 1


# --- the processes, played by a script -----------------------------------------------------------------------

WORKER = """
import json, sys
print(json.dumps({greeting}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    {answer}
"""
SEEN = {"version": "2.9.0", "built": "12.6", "gpus": 2}


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Return a function that makes workers of a greeting and of what they do with a request."""

    def make(greeting: dict[str, Any], answer: str = "pass", n: int = 1) -> cuda_pool.Workers:
        script = tmp_path / "worker.py"
        script.write_text(WORKER.format(greeting=repr(greeting), answer=answer))
        real = cuda_pool.subprocess.Popen

        def start(*, args: list[str], **options: Any) -> Any:
            return real([sys.executable, str(script), *args[-2:]], **options)

        monkeypatch.setattr(cuda_pool.subprocess, "Popen", start)
        return cuda_pool.Workers(n)

    return make


def test_all_workers_answer(played: Any) -> None:
    workers = played(SEEN, 'print(json.dumps({"ok": [int(sys.argv[1]), request["do"]]}), flush=True)', n=2)
    try:
        assert workers.ask({"do": "time"}) == [[0, "time"], [1, "time"]]
    finally:
        workers.close()
    workers.close()


@pytest.mark.parametrize(("kind", "error"), [("memory", DoesNotFit), ("unsupported", NoDevice)])
def test_what_a_worker_refuses_is_an_error_with_its_reason(played: Any, kind: str, error: type[Exception]) -> None:
    workers = played(SEEN, f'print(json.dumps({{"refused": "{kind}", "why": "no"}}), flush=True)')
    try:
        with pytest.raises(error, match="no"):
            workers.ask({"do": "time"})
    finally:
        workers.close()


def test_a_worker_that_dies_is_an_error(played: Any) -> None:
    workers = played(SEEN, "sys.exit(1)")
    try:
        with pytest.raises(MeasureError, match="died"):
            workers.ask({"do": "time"})
    finally:
        workers.close()


def test_a_worker_that_hangs_is_given_up(played: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_pool, "PATIENCE_S", 0.2)
    workers = played(SEEN)
    begin = time.perf_counter()
    try:
        with pytest.raises(MeasureError, match="did not answer"):
            workers.ask({"do": "time"})
    finally:
        workers.close()
    assert time.perf_counter() - begin < 10


@pytest.mark.parametrize(
    ("greeting", "n", "words"),
    [
        ({"version": "2.9.0", "built": None, "gpus": 0}, 1, "built without"),
        ({"version": "2.9.0", "built": "12.6", "gpus": 0}, 1, "no NVIDIA GPU"),
        ({"version": "2.9.0", "built": "12.6", "gpus": 1}, 2, "1 NVIDIA GPUs, not 2"),
    ],
)
def test_a_machine_without_enough_gpus_is_told_so(played: Any, greeting: Any, n: int, words: str) -> None:
    with pytest.raises(NoDevice, match=words):
        played(greeting, n=n)


def test_without_pytorch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise cuda_pool.PackageNotFoundError(name)

    monkeypatch.setattr(cuda_pool, "version", missing)
    with pytest.raises(NoDevice, match=r"pip install -e '\.\[torch\]'"):
        cuda_pool.CudaTimer()


def test_a_pytorch_without_cuda_is_refused_before_it_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_pool, "version", lambda name: "2.9.0+cpu")
    monkeypatch.setattr(cuda_pool, "Workers", refusing(AssertionError("started")))
    with pytest.raises(NoDevice, match="built without"):
        cuda_pool.CudaTimer()


# --- demands -----------------------------------------------------------------------------------------------


def test_decoding_sees_all_keys_and_training_half_of_them() -> None:
    kernel = CudaAttention()
    decode = kernel.cost(attention(query_tokens=1, kv_tokens=100, processes=1))
    prefill = kernel.cost(attention(query_tokens=100, kv_tokens=100, processes=1))
    assert decode.flops == 4 * 2 * 4 * 100 * 32
    assert prefill.flops == 100 * decode.flops / 2
    assert decode.on == prefill.on == "accelerator"


def test_grids_hold_what_laws_need_to_be_told_apart() -> None:
    points = CudaGemm().grid(quick=False)
    assert {dims["dtype"] for dims in points} == {"float32", "tf32", "bfloat16", "float16", "fp8"}
    assert {dims["pass"] for dims in points} == {"forward", "backward_data", "backward_weight"}
    assert min(dims["m"] for dims in points) == 1
    assert max(dims["m"] for dims in points) >= 8192
    # fp8 products take rows of whole 16 bytes
    assert all(dims["n"] % 16 == dims["k"] % 16 == 0 for dims in points if dims["dtype"] == "fp8")

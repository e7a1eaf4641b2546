"""How fast the simulator is: one token request by request, and a whole scenario."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import simpy

from sandtable.engine.sharing import RequestByRequest, random_reads
from sandtable.hardware import Storage, library
from sandtable.model.laws.storage_law import law_of
from sandtable.runs import predict
from sandtable.workload import scenarios

pytestmark = pytest.mark.skipif(
    os.environ.get("SANDTABLE_BENCH") != "1", reason="set SANDTABLE_BENCH=1 or run make bench"
)


def test_one_token_of_opt_request_by_request(benchmark) -> None:  # type: ignore[no-untyped-def]
    """Simulate 12 583 reads of 16 KiB over 32 layers; the target is a tenth of a second."""
    storage = library.load_component("storage", "apple_ssd_m1_max_1tb")
    assert isinstance(storage, Storage)
    law = law_of(storage)

    def token() -> float:
        env = simpy.Environment()
        device = RequestByRequest(env)

        def layers():  # type: ignore[no-untyped-def]
            for _ in range(32):
                yield device.serve(random_reads(law, 393, 16384, 32))

        env.process(layers())
        env.run()
        return float(env.now)

    assert benchmark(token) > 0
    print(f"\none token, 12 576 reads: {benchmark.stats['median'] * 1e3:.1f} ms (target 100 ms)")
    assert benchmark.stats["median"] < 0.1


def test_a_full_size_scenario(benchmark) -> None:  # type: ignore[no-untyped-def]
    """Predict 64 tokens of OPT-6.7B at full size: seconds, not minutes."""
    case = scenarios.load("flash_m1_max_metal")

    def whole() -> float:
        result, _, _ = predict.predict(case.scenario, case.workload, case.parameters, case.machine)
        return result.metrics["latency_s.mean"].value

    assert benchmark.pedantic(whole, rounds=3) > 0
    print(f"\n80 tokens of 32 layers: {benchmark.stats['median']:.2f} s")
    assert benchmark.stats["median"] < 10


def test_a_scenario_answers_within_a_second(benchmark, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """From the shell, interpreter and imports included; in processor time, which a busy machine does not stretch."""
    program = Path(sys.executable).with_name("sandtable")
    taken = []

    def simulate() -> None:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([program, "simulate", "flash_laptop"], cwd=tmp_path, capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)

    benchmark.pedantic(simulate, rounds=5, warmup_rounds=1)
    print(
        f"\nflash_laptop: {min(taken):.2f} s of a processor, {benchmark.stats['min']:.2f} s by the clock (target 1 s)"
    )
    assert min(taken) < 1

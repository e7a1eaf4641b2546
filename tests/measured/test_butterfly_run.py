"""Networks and layers run for real: memory is planned as the allocator counts it, threads are left as they were."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from sandtable import units
from sandtable.errors import ConfigError, NoDevice
from sandtable.hardware import Machine, library
from sandtable.workload.seam import Execution, ExecutionContext, workload_named
from sandtable_workloads.butterfly.butterfly_parameters import ButterflyVision
from sandtable_workloads.butterfly.vision_memory import memory_of

torch = pytest.importorskip("torch", reason="networks run in PyTorch")
pytest.importorskip("numba", reason="butterflies are compiled by numba")

WORKLOAD = workload_named("butterfly_vision")
NETWORKS = {"mobilenet_v1": 0.25, "shufflenet_v2": 0.5, "mobilenet_v3_small": 0.35}
# numbers beside those of layers: labels, statistics of norms, results of a loss
CLOSE_FRAC = 0.03


@pytest.fixture(scope="module")
def laptop() -> Machine:
    return library.load_machine("laptop_pcie4")


def run(laptop: Machine, folder: Path, **changes: Any) -> tuple[ButterflyVision, Execution]:
    values = {"steps": 2, "warmup_steps": 1, "resolution": 64, "classes": 10, "threads": 1} | changes
    p = ButterflyVision.model_validate(values, context=units.AT_EDGE)
    return p, WORKLOAD.execute(p, laptop, 1, ExecutionContext(folder=folder, n_threads=2))


@pytest.mark.parametrize(
    ("network", "structure"),
    [
        *((network, structure) for network in NETWORKS for structure in ("dense", "butterfly")),
        *(("mobilenet_v1", structure) for structure in ("low_rank", "circulant", "monarch", "block_shuffle")),
    ],
)
@pytest.mark.parametrize(("mode", "batch"), [("inference", 2), ("training", 8)])
def test_the_peak_is_planned_as_the_allocator_counts_it(
    network: str, mode: str, batch: int, structure: str, laptop: Machine, tmp_path: Path
) -> None:
    width = NETWORKS[network]
    p, found = run(laptop, tmp_path, network=network, width=width, structure=structure, mode=mode, batch=batch)
    planned = memory_of(p, laptop)
    assert found.memory_bytes.keys() == planned.keys()
    assert found.memory_bytes["weights"] == planned["weights"]
    assert sum(found.memory_bytes.values()) == pytest.approx(sum(planned.values()), rel=CLOSE_FRAC)


def test_a_step_of_training_reports_its_sections_and_a_loss_that_falls(laptop: Machine, tmp_path: Path) -> None:
    _, found = run(laptop, tmp_path, width=0.25, mode="training", batch=16, steps=20, resolution=32)
    main = found.recorder.units["main"]
    parts = sum(main.values[f"{part}_s"] for part in ("forward", "backward", "optimizer"))
    assert parts == pytest.approx(main.values["latency_s"])
    losses = main.values["loss"]
    assert losses[0] == pytest.approx(math.log(10), rel=0.5)
    assert losses[-5:].mean() < 0.7 * losses[0]


def test_the_process_has_its_own_threads_again(laptop: Machine, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    run(laptop, tmp_path, network="layer", resolution=128, classes=1000, n_in=64, rows=4, threads=1)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"threads": 64}, "64 and this process may use 2"),
        ({"precision": "bfloat16"}, r"bfloat16 is executed of a layer alone \(network: layer\)"),
        (
            {"network": "layer", "precision": "bfloat16", "structure": "monarch"},
            "executed of dense and butterfly layers",
        ),
    ],
)
def test_what_is_planned_only_is_refused_before_it_starts(
    changes: dict[str, Any], sentence: str, laptop: Machine, tmp_path: Path
) -> None:
    p = ButterflyVision.model_validate(changes, context=units.AT_EDGE)
    with pytest.raises(ConfigError, match=sentence):
        WORKLOAD.prepare(p, laptop, 1, ExecutionContext(folder=tmp_path, n_threads=2))


def test_a_gpu_that_is_not_there_is_missed(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA GPU")
    machine, p = library.load_machine("desktop_rtx4090"), ButterflyVision()
    with pytest.raises(NoDevice, match="PyTorch sees no CUDA GPU here: simulate it"):
        WORKLOAD.prepare(p, machine, 1, ExecutionContext(folder=tmp_path, n_threads=2))

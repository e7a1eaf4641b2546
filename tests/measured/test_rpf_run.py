"""Fits run for real: memory is planned as arrays are counted, ranks give what one process gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from sandtable import units
from sandtable.errors import ConfigError
from sandtable.hardware import Machine, library
from sandtable.workload.seam import Execution, ExecutionContext, workload_named
from sandtable_workloads.rpf import rpf_memory
from sandtable_workloads.rpf.rpf_parameters import Rpf, Variant

pytest.importorskip("numba", reason="passes are compiled by numba")

WORKLOAD = workload_named("rpf")
SMALL = {"users": 400, "items": 150, "events": 9000, "components": 6, "steps": 4, "warmup_steps": 1, "threads": 1}


@pytest.fixture(scope="module")
def laptop() -> Machine:
    return library.load_machine("laptop_pcie4")


def run(laptop: Machine, folder: Path, **changes: Any) -> tuple[Rpf, Execution]:
    p = Rpf.model_validate(SMALL | changes, context=units.AT_EDGE)
    return p, WORKLOAD.execute(p, laptop, 1, ExecutionContext(folder=folder, n_threads=2))


@pytest.mark.parametrize("variant", get_args(Variant))
@pytest.mark.parametrize(("components", "precision"), [(6, "float32"), (8, "float64"), (37, "float32")])
def test_memory_is_planned_array_by_array(
    variant: str, components: int, precision: str, laptop: Machine, tmp_path: Path
) -> None:
    p, found = run(laptop, tmp_path, variant=variant, components=components, precision=precision)
    planned = rpf_memory.held(p)
    assert found.memory_bytes.keys() == planned.keys()
    for kind, size in planned.items():
        exact = kind != "passes" or not (p.social or p.dynamic)
        assert found.memory_bytes[kind] == pytest.approx(size, rel=0.005 if exact else 0.03)


@pytest.mark.parametrize("variant", ["hrpf", "drpf", "iirpf", "xiirpf"])
def test_iterations_raise_the_bound(variant: str, laptop: Machine, tmp_path: Path) -> None:
    _, found = run(laptop, tmp_path, variant=variant, precision="float64", steps=12)
    main = found.recorder.units["main"]
    assert len(main) == 12
    assert np.all(np.diff(main.values["elbo"]) > 0)
    assert np.all(main.values["compute_s"] == main.values["latency_s"])


@pytest.mark.parametrize("variant", ["hrpf", "dsrpf", "xiirpf"])
def test_ranks_find_the_same_and_say_how_long_they_waited(variant: str, laptop: Machine, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="ranks meet through torch.distributed")
    _, one = run(laptop, tmp_path, precision="float64", variant=variant)
    p, two = run(laptop, tmp_path, precision="float64", variant=variant, ranks=2)
    elbos = [found.recorder.units["main"].values["elbo"] for found in (one, two)]
    np.testing.assert_allclose(elbos[1], elbos[0], rtol=1e-10)
    main = two.recorder.units["main"].values
    assert np.all(main["communication_s"] > 0)
    np.testing.assert_allclose(main["communication_s"] + main["compute_s"], main["latency_s"])
    planned = rpf_memory.held(p)
    assert two.memory_bytes.keys() == planned.keys()
    for kind, size in planned.items():
        assert two.memory_bytes[kind] == pytest.approx(size, rel=0.02), kind


def test_more_threads_than_there_are_is_a_sentence(laptop: Machine, tmp_path: Path) -> None:
    p = Rpf.model_validate(SMALL | {"threads": 64}, context=units.AT_EDGE)
    with pytest.raises(ConfigError, match="64 and this process may use 2"):
        WORKLOAD.prepare(p, laptop, 1, ExecutionContext(folder=tmp_path, n_threads=2))

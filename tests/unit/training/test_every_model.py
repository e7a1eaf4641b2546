"""Every name of a model that can be planned is the same model when it is executed, or is refused with one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandtable import yaml_files
from sandtable.errors import ConfigError
from sandtable.hardware import library
from sandtable.workload.seam import ExecutionContext
from sandtable_workloads.training.executed import run_job
from sandtable_workloads.training.executed.job import Job
from sandtable_workloads.training.training_parameters import SlmTraining
from sandtable_workloads.transformer.presets import ALIASES, all_presets, shape_for, shape_named

_ALIASES = yaml_files.plain(yaml_files.read_yaml(ALIASES))["aliases"]
PUBLISHED = [str(name) for names in _ALIASES.values() for name in names]
NAMES = sorted({*all_presets(), *PUBLISHED})


def refused(parameters: SlmTraining) -> str | None:
    try:
        run_job.check_executable(parameters)
    except ConfigError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", NAMES)
def test_it_executes_as_planned_or_is_refused_in_one_sentence(name: str) -> None:
    parameters = SlmTraining(model=name, sequence_tokens=16)
    job = Job(parameters=parameters, seed=1, folder=Path(), tokens=(Path(), 0, 0))
    assert job.shape is parameters.shape
    refusal = refused(parameters)
    if refusal is not None:
        assert "\n" not in refusal
        assert job.shape.name in refusal
        return
    torch = pytest.importorskip("torch", reason="building a model needs torch")
    from sandtable_workloads.training.executed.decoder import Decoder

    with torch.device("meta"):
        model = Decoder(job.shape, sequence_tokens=16, core="flash", checkpointing="none")
    assert sum(part.numel() for part in model.parameters()) == job.shape.n_params


def test_a_published_name_is_refused_before_it_starts(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="training for real needs torch")
    context = ExecutionContext(folder=tmp_path, n_threads=1)
    with pytest.raises(ConfigError, match="only Llama-style models are executed"):
        run_job.prepare(SlmTraining(model="gpt2"), library.load_machine("laptop_pcie4"), 1, context)


def test_some_names_of_each_kind_can_be_executed() -> None:
    for name in ("slm_100m", "tiny_2x32", "TinyLlama-1.1B", "meta-llama/Llama-2-7b-hf"):
        run_job.check_executable(SlmTraining(model=name))


def test_learned_positions_are_as_many_as_a_sequence_has_tokens() -> None:
    short, long = (shape_for("gpt2", n) for n in (128, 256))
    assert long.n_params - short.n_params == 128 * short.d_model
    assert shape_for("slm_100m", 128) == shape_named("slm_100m")


def test_a_file_that_is_there_comes_before_a_published_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("llama_2_7b").mkdir()
    with pytest.raises(ConfigError, match=r"config\.json"):
        shape_for("./llama_2_7b")

"""How far a scaling law is believed, and laws fitted to run folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sandtable import units
from sandtable.contracts import run_command
from sandtable.errors import ConfigError
from sandtable.results import Measurement, Metric
from sandtable.runs.run_folder import RunFolder
from sandtable_workloads.training.choices import scaling_law
from sandtable_workloads.training.training_parameters import SlmTraining
from sandtable_workloads.transformer.presets import shape_named

TRUE = scaling_law.Additive(source="made up", e=1.2, a=0.0, b=9.0, alpha=1.0, beta=0.25)


def saved(folder: Path, *, model: str = "tiny_3x64", steps: int = 400, warmup: int = 5) -> str:
    """Save a run whose losses follow `TRUE`, and return its folder."""
    run = SlmTraining(model=model, sequence_tokens=64, micro_batch=8, steps=steps, warmup_steps=warmup)
    n_params = shape_named(model).n_params
    losses = [TRUE.loss(n_params, run.tokens_per_step * (warmup + step + 0.5)) for step in range(1, steps + 1)]
    mean = sum(losses) / steps
    metric = Metric(
        value=mean, low=min(losses), high=max(losses), unit=units.unit_of("loss"), samples=tuple(losses)
    )
    scenario: dict[str, Any] = {"name": "made_up", "parameters": run.model_dump(mode="json")}
    kept = RunFolder.create("made_up", folder)
    kept.save(Measurement(scenario=scenario, machine="m", metrics={"loss.mean": metric}))
    return str(kept.path)


def test_a_law_is_fitted_to_the_losses_of_a_run_folder(tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    found = scaling_law.law_named(saved(tmp_path))
    n_params = shape_named("tiny_3x64").n_params
    assert "fitted to the losses of" in found.source
    assert (found.least_params, found.most_params) == (n_params, n_params)
    assert found.most_tokens == pytest.approx(512 * 405, rel=0.1)
    # ten times the tokens that were seen
    assert found.loss(n_params, 2e6) == pytest.approx(TRUE.loss(n_params, 2e6), rel=0.03)


def test_several_runs_make_one_law(tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    runs = [saved(tmp_path, model=model) for model in ("tiny_2x32", "tiny_4x128")]
    found = scaling_law.law_named(",".join(runs))
    assert found.least_params < found.most_params  # type: ignore[operator]


def test_simulate_and_cheapest_say_nothing_far_beyond_a_fitted_law(tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    law = f"parameters.scaling_law={saved(tmp_path)}"
    told = run_command("simulate", "slm_1b_cloud", "--full", "--set", law)
    assert told.code == 0, told.err
    assert "training_usd" in told.out
    assert "final_loss" not in told.out
    assert "loss_per_usd" not in told.out
    refused = run_command("cheapest", "slm_1b_cloud", "--until", "loss=2", "--set", law)
    assert refused.code == 2
    assert "was fitted to 1.75e+05 to 1.75e+05 parameters on at most" in refused.err
    few = ("--machines", "aws_p4d_24xlarge", "--most-devices", "8")
    searched = run_command("cheapest", "slm_1b_cloud", "--until", "tokens=1e9", "--set", law, *few)
    assert searched.code == 0, searched.err
    assert "loss" not in searched.out.splitlines()[0]


def test_a_run_without_losses_is_refused(tmp_path: Path) -> None:
    kept = RunFolder.create("nothing", tmp_path)
    kept.save(Measurement(scenario={"name": "made_up", "parameters": {}}, machine="m", metrics={}))
    with pytest.raises(ConfigError, match="no measured losses"):
        scaling_law.law_named(str(kept.path))


@pytest.mark.parametrize(
    ("model", "tokens", "believed"),
    [
        ("slm_100m", 2e9, True),
        ("tiny_3x64", 2e9, False),
        ("llama_3_70b", 15e12, True),
        ("llama_3_70b", 16e12, False),
    ],
)
def test_how_far_chinchilla_is_believed(model: str, tokens: float, believed: bool) -> None:
    assert scaling_law.law_named("chinchilla").covers(shape_named(model), tokens) is believed

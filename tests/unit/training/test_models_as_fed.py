"""A config.json that is fed to a training: every parameter is held, and what is left aside stands in the warnings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import sandtable
from sandtable.errors import ConfigError, DoesNotFit
from sandtable.results import Prediction
from sandtable_workloads.training.executed.run_job import check_shape
from sandtable_workloads.transformer.hf_config import shape_of

GPT_2 = {"model_type": "gpt2", "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024, "vocab_size": 50257}
GEMMA_3 = {
    "model_type": "gemma3",
    "text_config": {"model_type": "gemma3_text", "hidden_size": 640, "intermediate_size": 2048, "head_dim": 64}
    | {"num_hidden_layers": 12, "num_attention_heads": 4, "num_key_value_heads": 1},
    "vision_config": {},
}


def trained(config: dict[str, Any], folder: Path, **more: Any) -> Prediction:
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    changes = {"model": str(path), "devices": 1, "micro_batch": 1, "sequence_tokens": 1024, **more}
    settings = {f"parameters.{name}": value for name, value in changes.items()}
    return sandtable.simulate("slm_100m_a100", settings).prediction


def test_every_parameter_is_held(tmp_path: Path) -> None:
    found = trained(GPT_2 | {"tie_word_embeddings": False}, tmp_path)
    assert found.memory["weights"] == 2 * 163_037_184
    assert found.answer is not None
    assert "163M parameters" in found.answer.subject


def test_a_tower_is_held_and_packed_weights_are_named(tmp_path: Path) -> None:
    config = GEMMA_3 | {"quantization_config": {"quant_method": "awq", "bits": 4}}
    found = trained(config, tmp_path)
    assert found.memory["weights"] == 2 * shape_of(config, "config.json", "mine").n_params
    assert any("vision tower (4" in warning for warning in found.warnings)
    assert any(warning.startswith("quantization_config (awq, weights of 4 bits)") for warning in found.warnings)


def test_what_does_not_fit_is_named_with_its_parameters(tmp_path: Path) -> None:
    with pytest.raises(DoesNotFit, match=r"\(12\.[0-9]B parameters\) needs "):
        trained(GPT_2 | {"n_embd": 8192, "n_head": 64, "n_layer": 15}, tmp_path)


def test_a_tower_is_not_executed() -> None:
    with pytest.raises(ConfigError, match="parts beside its text"):
        check_shape(shape_of(GEMMA_3, "config.json", "mine"))

"""A soup loads in transformers as its models do, and thinks what the average of their weights thinks."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from sandtable_workloads.rlhf.soups import SoupOptions, soup

torch = pytest.importorskip("torch", reason="transformers runs on PyTorch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers", reason="the extra bench has it")

pytestmark = pytest.mark.filterwarnings("ignore")
SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def saved(folder: Path, seed: int, dtype: Any, *, tied: bool, shard: str) -> Any:
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, tie_word_embeddings=tied)).to(dtype)
    model.save_pretrained(folder, max_shard_size=shard)
    return model


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("name", "shard"), [("bfloat16", "20KB"), ("float16", "1GB"), ("float32", "20KB")])
def test_a_soup_loads_as_a_model_of_averaged_weights(tmp_path: Path, name: str, shard: str, tied: bool) -> None:
    dtype = getattr(torch, name)
    models = [saved(tmp_path / f"m{seed}", seed, dtype, tied=tied, shard=shard) for seed in range(2)]
    soup([tmp_path / "m0", tmp_path / "m1"], tmp_path / "out", [0.25, 0.75])
    found = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert found.dtype == dtype
    assert found.config.tie_word_embeddings == tied
    states = [model.state_dict() for model in models]
    for key, values in found.state_dict().items():
        one, two = (state[key].double() for state in states)
        torch.testing.assert_close(values, (0.25 * one + 0.75 * two).to(dtype), rtol=0, atol=0)
    heads = found.get_input_embeddings().weight, found.get_output_embeddings().weight
    assert (heads[0].data_ptr() == heads[1].data_ptr()) == tied


def test_a_soup_in_another_type_says_so(tmp_path: Path) -> None:
    for seed in range(2):
        saved(tmp_path / f"m{seed}", seed, torch.float32, tied=False, shard="1GB")
    soup([tmp_path / "m0", tmp_path / "m1"], tmp_path / "out", options=SoupOptions(dtype="bfloat16"))
    found = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert found.dtype == torch.bfloat16

"""One argument names a model: preset, published name, repository, folder or file; and what people call it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sandtable.errors import ConfigError, UnknownName
from sandtable_workloads.transformer import all_presets, describe, listing, model_of

LLAMA = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 1000,
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with models in it, and stand in another one, which has one more."""
    for place, layers in (("beside/mine", 2), ("beside/owner/name", 3), ("here/only_here", 4), ("here/mine", 5)):
        target = tmp_path / place
        target.mkdir(parents=True)
        (target / "config.json").write_text(json.dumps(LLAMA | {"num_hidden_layers": layers}))
    (tmp_path / "beside/model.json").write_text(json.dumps(LLAMA))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "beside"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("llama_2_7b", "llama_2_7b"),
        ("gpt2", "gpt_2_124m"),
        ("facebook/opt-6.7b", "opt_6_7b"),
        ("meta-llama/Llama-2-7b-chat-hf", "llama_2_7b"),
        ("opt_6_7b_8l", "opt_6_7b_8l"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "mistral_7b_v0_3"),
        ("mistralai/Mistral-7B-Instruct-v0.2", "mistral_7b_v0_2"),
        ("mistralai/Mistral-7B-v0.1", "mistral_7b"),
    ],
)
def test_presets_by_the_names_that_people_have(text: str, name: str) -> None:
    assert model_of(text).name == name


@pytest.mark.parametrize(
    ("text", "layers"),
    [("mine", 2), ("owner/name", 3), ("only_here", 4), ("./mine", 2), ("model.json", 2), ("mine/config.json", 2)],
)
def test_relative_paths_are_found_beside_the_file_that_names_them(text: str, layers: int, folder: Path) -> None:
    assert model_of(text, folder).n_layers == layers


def test_without_a_folder_paths_are_those_of_the_current_one(folder: Path) -> None:
    assert model_of("mine").n_layers == 5
    assert model_of(str(folder / "mine")).n_layers == 2


def test_a_folder_does_not_hide_a_preset(folder: Path) -> None:
    (folder / "llama_2_7b").mkdir()
    assert model_of("llama_2_7b", folder).n_params == 6_738_415_616


@pytest.mark.parametrize(
    ("text", "error", "sentence"),
    [
        (
            "someone/their-model",
            ConfigError,
            "download https://huggingface.co/someone/their-model/resolve/main/config",
        ),
        ("llama_2_7", UnknownName, "no model named 'llama_2_7' .did you mean 'llama_2_7b'"),
        ("opt_6_7b_33l", UnknownName, "no model named"),
        ("opt_6_7b_99999999999999999999l", UnknownName, "no model named"),
        ("none.json", ConfigError, "no such file"),
        ("a/b/c", ConfigError, "no such file"),
        ("", ConfigError, "this is no name"),
        ("a\0b", ConfigError, "this is no name"),
        ("x" * 5000, ConfigError, "this is no name"),
        ("y" * 300, UnknownName, "no model named"),
    ],
)
def test_no_such_model(text: str, error: type[Exception], sentence: str, folder: Path) -> None:
    with pytest.raises(error, match=sentence):
        model_of(text, folder)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("llama_2_7b", "Llama 2 7B, 6.74B parameters"),
        ("opt_6_7b", "OPT 6.7B, 6.66B parameters"),
        ("gemma_2_2b", "Gemma 2 2B, 2.61B parameters"),
        ("llama_3_1_8b", "Llama 3.1 8B, 8.03B parameters"),
        ("qwen_2_5_1_5b", "Qwen 2.5 1.5B, 1.54B parameters"),
        ("mixtral_8x7b", "Mixtral 8x7B, 46.7B parameters, 12.9B of them for each token"),
        ("llama_3_8b_4l", "Llama 3 8B, 4 of its 32 layers, 1.92B parameters"),
    ],
)
def test_a_model_in_words(text: str, words: str) -> None:
    assert describe(model_of(text)) == words


def test_a_file_is_called_by_its_folder(folder: Path) -> None:
    assert describe(model_of("mine", folder)) == "mine, 1.82M parameters"


def test_the_list_of_presets() -> None:
    rows = {row.name: row for row in listing()}
    assert set(rows) == set(all_presets())
    assert rows["llama_2_7b"].source.startswith("meta-llama/Llama-2-7b")
    assert (rows["mixtral_8x7b"].title, rows["mixtral_8x7b"].n_active_params) == ("Mixtral 8x7B", 12_879_925_248)
    assert len({row.title for row in rows.values()}) == len(rows)

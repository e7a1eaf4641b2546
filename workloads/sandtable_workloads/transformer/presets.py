"""The one way to name a model: a preset that ships as YAML, its first layers, a published name, the name of a
repository on the Hugging Face Hub, a folder that holds a ``config.json``, or that file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from sandtable import units, yaml_files
from sandtable.errors import ConfigError, UnknownName
from sandtable_workloads.transformer.hf_config import from_hf_config
from sandtable_workloads.transformer.shapes import ModelShape

FOLDER = Path(__file__).parent / "presets"
ALIASES = FOLDER / "aliases.yaml"
_SHALLOWER = re.compile(r"(.+)_(\d+)l")


@lru_cache(maxsize=1)
def preset_sources() -> dict[str, str]:
    """Return preset -> where its numbers are from, of all families."""
    return {name: source for _, part in _families() for name, source in part[1].items()}


@lru_cache(maxsize=1)
def all_presets() -> dict[str, ModelShape]:
    """Return all presets by name."""
    return {name: shape for _, part in _families() for name, shape in part[0].items()}


def _families() -> Iterator[tuple[str, tuple[dict[str, ModelShape], dict[str, str]]]]:
    for path in sorted(FOLDER.glob("*.yaml")):
        if path != ALIASES:
            yield path.stem, _family(path)


@lru_cache(maxsize=64)
def _family(path: Path) -> tuple[dict[str, ModelShape], dict[str, str]]:
    """Return the shapes of one file, and the source of each."""
    data = yaml_files.plain(yaml_files.read_yaml(path))
    shapes, sources = {}, {}
    for name, own in data["shapes"].items():
        fields: dict[str, Any] = {"name": name} | data.get("defaults", {}) | own
        sources[name] = str(fields.pop("source", data["source"]))
        shape = yaml_files.validate(ModelShape, _completed(fields), str(path))
        shapes[name] = shape if shape.title else shape.model_copy(update={"title": title_of(name, shape.n_params)})
    return shapes, sources


def _completed(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in what most models leave unsaid: as many key/value heads as heads, that share the width; I = 4 D."""
    d_model, n_heads = fields["d_model"], fields["n_heads"]
    usual = {"n_kv_heads": n_heads, "head_dim": d_model // n_heads, "n_neurons": 4 * d_model}
    return usual | dict(fields)


def preset(name: str) -> ModelShape | None:
    """Return a preset by its name, or None; reads only the family's file where the name begins with the family's."""
    head = name.partition("_")[0]
    family = FOLDER / f"{head}.yaml"
    if re.fullmatch(r"[a-z0-9]{1,40}", head) and family.is_file() and name in (shapes := _family(family)[0]):
        return shapes[name]
    return all_presets().get(name)


def base_name(name: str) -> str:
    """Return the name of the preset that ``name`` is, or is the first layers of."""
    shallower = _SHALLOWER.fullmatch(name)
    return shallower[1] if preset(name) is None and shallower is not None else name


def shape_named(name: str) -> ModelShape:
    """Return a preset; ``opt_6_7b_8l`` is the first eight layers of ``opt_6_7b``; or what else `model_of` finds.

    Raises:
        UnknownName: with the nearest presets.
        ConfigError: a path whose file is missing, or no transformer's configuration.
    """
    return model_of(name)


def model_of(text: str, folder: Path | None = None) -> ModelShape:
    """Return the shape of a model, however people name it.

    Args:
        text: A preset (``llama_2_7b``, or ``llama_2_7b_4l`` for its first four layers), a published name of one
            (``gpt2``, ``Llama-2-7b-chat-hf``), the name of a repository on the Hub (``facebook/opt-6.7b``), a folder
            that holds a ``config.json``, or the path of such a file.
        folder: Where relative paths are looked up first, such as the folder of the scenario that names the model;
            then the current one.

    Raises:
        UnknownName: with the nearest presets.
        ConfigError: a path whose file is missing or no configuration of a model that is known here; or a repository
            that no preset is made from, with the file to download.
    """
    if not text or "\0" in text or len(text) > 1024:
        raise ConfigError(
            "a model is named by a preset, a repository on the Hub, a folder or a file: this is no name"
        )
    if text.startswith(("/", "./", "../", "~")) or text.endswith(".json"):
        return from_hf_config(_beside(text, folder) or _expanded(text))
    if (found := _preset_or_first_layers(text)) is not None:
        return found
    if (path := _beside(text, folder)) is not None:
        return from_hf_config(path)
    if (published := preset_for(text)) is not None:
        return _preset_named(published)
    if _REPOSITORY.fullmatch(text):
        raise ConfigError(
            f"no preset is made from {text}: download https://huggingface.co/{text}/resolve/main/config.json and "
            "name the file"
        )
    if "/" in text:
        return from_hf_config(Path(text))
    raise UnknownName("model", text, all_presets())


# owner/name, as the Hub allows it
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def _expanded(text: str) -> Path:
    """Return a path, with the home of whom it begins with, where that is somebody."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def _beside(text: str, folder: Path | None) -> Path | None:
    """Return the file or folder of that name, beside the file that names it or in the current folder."""
    if not text or "\0" in text or len(text) > 4096:
        raise ConfigError(
            "a model is named by a preset, a repository on the Hub, a folder or a file: this is no name"
        )
    path = _expanded(text)
    places = [path] if folder is None else [folder / path, path]
    try:
        return next((place for place in places if place.exists()), None)
    except OSError:  # a name too long for a file is none
        return None


def _preset_named(name: str) -> ModelShape:
    found = _preset_or_first_layers(name)
    if found is None:
        raise UnknownName("model", name, all_presets())
    return found


@lru_cache(maxsize=256)
def _preset_or_first_layers(name: str) -> ModelShape | None:
    found = preset(name)
    shallower = _SHALLOWER.fullmatch(name) if found is None else None
    base = None if shallower is None else preset(shallower[1])
    if shallower is None or base is None or not 0 < int(shallower[2][:9]) <= base.n_layers:
        return found
    return base.with_layers(int(shallower[2]))


# --- names that others print ---------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _aliases() -> dict[str, str]:
    """Return normalised published name -> preset, from the table of aliases."""
    table = yaml_files.plain(yaml_files.read_yaml(ALIASES))
    found: dict[str, str] = {}
    for target, names in table["aliases"].items():
        for name in names:
            key = normalised(str(name))
            if found.setdefault(key, target) != target:
                raise ConfigError(f"{name!r} stands for {found[key]} and {target}: keep one", file=str(ALIASES))
    return found


def normalised(published: str) -> str:
    """Return a published model name in the form of presets: ``meta-llama/Llama-2-70b-hf`` -> ``llama_2_70b``.

    The owner, what follows a blank in brackets, and endings that do not change the shape (``-hf``, ``-Instruct``,
    ``-FP8``) are dropped; everything that is no letter or digit becomes one underscore.
    """
    text = _simple(published)
    while (shorter := _ENDINGS.sub("", text)) != text:
        text = shorter
    return text


def _simple(published: str) -> str:
    text = re.sub(r"^[\w.-]+/|\(.*?\)", "", published).lower()
    return re.sub(r"[^a-z0-9]+", "_", text).strip("_")


_ENDINGS = re.compile(
    r"_(hf|base|instruct|chat|it|fp8|fp4|nvfp4|mxfp4|bf16|fp16|int4|int8|4bit|8bit|4_bit|32_bit|v0_[123])$"
)


def preset_for(published: str) -> str | None:
    """Return the preset for a model's published name, as tables of results print it; None if there is none."""
    # what an ending would hide, such as the -v0.3 of a Mistral with more tokens
    exact = re.sub(r"_(instruct|chat|base)(?=_)", "", _simple(published))
    name = exact if preset(exact) is not None else normalised(published)
    name = _aliases().get(name, name)
    if preset(name) is not None:
        return name
    return next((known for known in all_presets() if _split(known) == _split(name)), None)


def shape_for(model: str, sequence_tokens: int | None = None) -> ModelShape:
    """Return the shape of a model however it is named, see `model_of`.

    Learned positions are as many as ``sequence_tokens``, where that is given.
    """
    shape = model_of(model)
    if _preset_or_first_layers(shape.name) is shape:
        return _preset_with(shape.name, sequence_tokens)
    return shape if sequence_tokens is None else shape.with_positions(sequence_tokens)


@lru_cache(maxsize=256)
def _preset_with(name: str, n_positions: int | None) -> ModelShape:
    """A search asks for the same shape many thousand times."""
    shape = _preset_named(name)
    return shape if n_positions is None else shape.with_positions(n_positions)


def _split(name: str) -> str:
    """Put an underscore between letters and digits: llama2_7b and llama_2_7b become one."""
    return re.sub(r"([a-z])(?=\d)", r"\1_", name)


# --- what people call them -----------------------------------------------------------------------------------

_SPELT = {"gpt": "GPT", "opt": "OPT", "mpt": "MPT", "slm": "SLM", "glm": "GLM", "bert": "BERT", "oss": "OSS"} | {
    "bloom": "BLOOM",
    "moe": "MoE",
    "tinyllama": "TinyLlama",
    "codellama": "CodeLlama",
    "deepseek": "DeepSeek",
    "internlm": "InternLM",
    "stablelm": "StableLM",
    "minimax": "MiniMax",
    "smallthinker": "SmallThinker",
    "neox": "NeoX",
}
# families whose names carry no number of a generation: what stands before the size belongs to it
_NO_GENERATION = frozenset({"opt", "falcon", "bloom", "mpt", "pythia", "megatron", "persimmon", "tinyllama", "slm"})
_SIZE = re.compile(r"(?:_(\d+))?_(\d+)([bmt])(?=_|$)")


def title_of(name: str, n_params: float = 0.0) -> str:
    """Return what people call a preset: ``llama_3_1_8b`` is Llama 3.1 8B, ``opt_6_7b`` is OPT 6.7B.

    Of 3.1 8B and 3 1.8B, the one nearer to the number of parameters is meant.
    """
    family = name.partition("_")[0]
    text = re.sub(r"_a(\d+)_(\d+[bm])", r"_a\1.\2", name)
    if (found := _SIZE.search(text)) and found[1]:
        scale = {"m": 1e6, "b": 1e9, "t": 1e12}[found[3]]
        whole, joined = (
            abs(math.log(float(size) * scale / max(1.0, n_params))) for size in (found[2], _point(found))
        )
        generation = re.search(r"_\d+$", text[: found.start()])
        if family in _NO_GENERATION or (generation and joined < whole):
            text = f"{text[: found.start()]}_{_point(found)}{found[3]}{text[found.end() :]}"
    text = re.sub(r"(?<=_)(\d+)_(\d+)(?=_|$)", r"\1.\2", text)
    return " ".join(_SPELT.get(word) or _capital(word) for word in text.split("_"))


def _point(size: re.Match[str]) -> str:
    return f"{size[1]}.{size[2]}"


def _capital(word: str) -> str:
    word = re.sub(r"(?<=\d)[bmt]$", lambda unit: unit[0].upper(), word)
    return word[:1].upper() + word[1:]


def describe(shape: ModelShape) -> str:
    """Return what a model is in a few words: ``Llama 2 7B, 6.74 B parameters``, of experts also how many are active."""
    active = "" if shape.is_dense else f", {units.format_count(shape.n_active_params)} of them for each token"
    return f"{shape.title or shape.name}, {units.format_count(shape.n_params)} parameters{active}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One preset of the list: its name and title, its parameters, those that a token meets, where they are from."""

    name: str
    title: str
    n_params: int
    n_active_params: int
    source: str


def listing() -> list[Listed]:
    """Return all presets, in the order of their names."""
    sources = preset_sources()
    return [
        Listed(
            name=name,
            title=shape.title,
            n_params=shape.n_params,
            n_active_params=shape.n_active_params,
            source=sources[name],
        )
        for name, shape in sorted(all_presets().items())
    ]

"""Shapes by name: presets that ship as YAML, their first layers, or a Hugging Face ``config.json`` by path."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from sandtable import yaml_files
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
        shapes[name] = yaml_files.validate(ModelShape, _completed(fields), str(path))
    return shapes, sources


def _completed(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in what most models leave unsaid: as many key/value heads as heads, that share the width; I = 4 D."""
    d_model, n_heads = fields["d_model"], fields["n_heads"]
    usual = {"n_kv_heads": n_heads, "head_dim": d_model // n_heads, "n_neurons": 4 * d_model}
    return usual | dict(fields)


def preset(name: str) -> ModelShape | None:
    """Return a preset by its name, or None; reads only the family's file where the name begins with the family's."""
    family = FOLDER / f"{name.partition('_')[0]}.yaml"
    if family.is_file() and name in (shapes := _family(family)[0]):
        return shapes[name]
    return all_presets().get(name)


def base_name(name: str) -> str:
    """Return the name of the preset that ``name`` is, or is the first layers of."""
    shallower = _SHALLOWER.fullmatch(name)
    return shallower[1] if preset(name) is None and shallower is not None else name


def shape_named(name: str) -> ModelShape:
    """Return a preset; ``opt_6_7b_8l`` is the first eight layers of ``opt_6_7b``; or read a ``config.json`` by path.

    Raises:
        UnknownName: with the nearest presets.
        ConfigError: a path whose file is missing, or no transformer's configuration.
    """
    if name.endswith(".json") or "/" in name:
        return from_hf_config(Path(name))  # may have changed since
    return _preset_named(name)


@lru_cache(maxsize=256)
def _preset_named(name: str) -> ModelShape:
    found = preset(name)
    if found is not None:
        return found
    shallower = _SHALLOWER.fullmatch(name)
    base = None if shallower is None else preset(shallower[1])
    if shallower is None or base is None or not 0 < int(shallower[2]) <= base.n_layers:
        raise UnknownName("geometry", name, all_presets())
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
    text = re.sub(r"^[\w.-]+/|\(.*?\)", "", published).lower()
    text = re.sub(r"[^a-z0-9]+", "_", text).strip("_")
    while (shorter := _ENDINGS.sub("", text)) != text:
        text = shorter
    return text


_ENDINGS = re.compile(
    r"_(hf|base|instruct|chat|it|fp8|fp4|nvfp4|mxfp4|bf16|fp16|int4|int8|4bit|8bit|4_bit|32_bit|v0_[123])$"
)


def preset_for(published: str) -> str | None:
    """Return the preset for a model's published name, as tables of results print it; None if there is none."""
    name = normalised(published)
    name = _aliases().get(name, name)
    if preset(name) is not None:
        return name
    return next((known for known in all_presets() if _split(known) == _split(name)), None)


@lru_cache(maxsize=256)
def shape_for(model: str, sequence_tokens: int | None = None) -> ModelShape:
    """Return the shape of a model however it is named: a preset, a published name, or a path; see `shape_named`.

    Learned positions are as many as ``sequence_tokens``, where that is given.
    """
    shape = shape_named(model if Path(model).exists() else preset_for(model) or model)
    if sequence_tokens is None or shape.positions != "learned":
        return shape
    return shape.with_positions(sequence_tokens)


def _split(name: str) -> str:
    """Put an underscore between letters and digits: llama2_7b and llama_2_7b become one."""
    return re.sub(r"([a-z])(?=\d)", r"\1_", name)

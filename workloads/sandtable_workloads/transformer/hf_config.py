"""Read the shape of a model from the ``config.json`` that stands beside its weights on Hugging Face.

How each family of models says what it is stands in `sandtable_workloads.transformer.families`; here is the file itself:
its bytes, the language model within a composite, weights that are stored packed, and what is said of parts left out.
"""

from __future__ import annotations

import difflib
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sandtable import units
from sandtable.errors import ConfigError
from sandtable.text_files import read_json
from sandtable_workloads.transformer.families import FAMILIES, REFUSED, TEXT_OF, HfConfig, fields_of, tower_params
from sandtable_workloads.transformer.shapes import ModelShape, StoredWeights

# a config.json has kilobytes; those with a label for each of many classes a few megabytes
MOST_BYTES = 16 << 20
_WEIGHTS = (".safetensors", ".gguf", ".bin", ".pt", ".pth")
_TEXT_PARTS = ("text_config", "llm_config", "language_config")
_OTHER_PARTS = ("vision_config", "audio_config", "speech_config", "vq_config", "qformer_config")


def from_hf_config(path: str | Path) -> ModelShape:
    """Return the shape that a Hugging Face ``config.json`` (or the folder that holds one) describes.

    Its ``notes`` say what of the file is left out or only held.

    Raises:
        ConfigError: no such file, not JSON, not a model that is known here, or a field that is missing or odd.
    """
    path = Path(path)
    path = path / "config.json" if path.is_dir() else path
    return _cached(path, *_stamp(path))


def _stamp(path: Path) -> tuple[int, int]:
    """Return what changes when a file does; zeros where there is none, which reading it says."""
    if path.suffix in _WEIGHTS:
        raise ConfigError("these are weights: give the config.json that lies beside them", file=str(path))
    try:
        found = path.stat()
    except (OSError, ValueError):
        if path.name == "config.json" and path.parent.is_dir():
            raise ConfigError("this folder holds no config.json", file=str(path.parent)) from None
        return 0, 0
    return found.st_mtime_ns, found.st_size


@lru_cache(maxsize=64)
def _cached(path: Path, changed_ns: int, size: int) -> ModelShape:
    stem = path.stem if path.stem != "config" else path.resolve().parent.name
    return shape_of(read_json(path, MOST_BYTES), str(path), stem)


def shape_of(data: Any, file: str, title: str) -> ModelShape:
    """Return the shape that the content of a ``config.json`` describes; ``file`` and ``title`` name it.

    Raises:
        ConfigError: see `from_hf_config`.
    """
    whole = _whole(data, file)
    text = _text_part(whole)
    try:
        fields = fields_of(text)
        others = fields.pop("other_params", 0) + _beside(whole, text, fields["d_model"])
        return ModelShape(
            name=_as_name(title),
            title=title,
            **fields,
            other_params=others,
            stored=_stored(whole) or _stored(text),
            notes=tuple(dict.fromkeys((*whole.notes, *text.notes))),
        )
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        message = fault["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{where}: {message}" if where else message, file=file) from None


def _whole(data: Any, file: str) -> HfConfig:
    if not isinstance(data, dict):
        raise ConfigError("a JSON object is needed, as in a Hugging Face config.json", file=file)
    kind = data.get("model_type")
    if "peft_type" in data or "base_model_name_or_path" in data:
        raise ConfigError("this describes an adapter: give the config.json of the model that it is for", file=file)
    if kind is None:
        raise ConfigError("this is no Hugging Face config.json: it has no 'model_type'", file=file)
    if not isinstance(kind, str):
        raise ConfigError(f"model_type must be a text, not {str(kind)[:40]!r}", file=file)
    return HfConfig(data, file, FAMILIES.get(kind, FAMILIES["llama"]))


# --- parts of composites -----------------------------------------------------------------------------------------


def _text_part(whole: HfConfig) -> HfConfig:
    """Return the configuration of the language model, which models of text and images keep in a part of theirs."""
    kind = whole.model_type
    key = next((key for key in _TEXT_PARTS if whole.data.get(key) is not None), None)
    if kind in REFUSED or key is None:
        return HfConfig(whole.data, whole.file, _family(TEXT_OF.get(kind, kind), whole.file))
    part = whole.part(key)
    inner = whole.data[key].get("model_type") or TEXT_OF.get(kind)
    if not isinstance(inner, str):
        raise whole.fault(f"{key} has no 'model_type': add the family of the language model, such as 'llama'")
    outer = {"tie_word_embeddings": whole.data.get("tie_word_embeddings")}
    return HfConfig(
        {**outer, **part.data, "model_type": inner}, whole.file, _family(inner, whole.file), nested=True
    )


def _family(kind: str, file: str) -> Any:
    if kind in FAMILIES:
        return FAMILIES[kind]
    if kind in REFUSED:
        raise ConfigError(
            f"a {kind} model has {REFUSED[kind]}: known here are stacks of layers with attention, to all tokens or "
            "to a window",
            file=file,
        )
    # another generation of a family is another shape: only a slip of the pen is corrected
    letters = _letters(kind)
    near = [
        known for known in difflib.get_close_matches(kind, FAMILIES, n=3, cutoff=0.75) if _letters(known) != letters
    ]
    meant = f" (did you mean {', '.join(map(repr, near))}?)" if near else ""
    raise ConfigError(f"model_type {kind[:60]!r} is no transformer that is known here{meant}", file=file)


def _letters(kind: str) -> str:
    return "".join(c for c in kind if c.isalpha())


def _beside(whole: HfConfig, text: HfConfig, text_width: int) -> int:
    """Return the parameters that a composite holds beside its text, and note what is held or left out."""
    total = 0
    for key in _OTHER_PARTS:
        if whole.data.get(key) is None:
            continue
        whole.part(key)
        found = tower_params(whole, text_width) if key == "vision_config" else None
        what = key.removesuffix("_config")
        if found is None:
            whole.notes.append(f"the {what} part is left out: its size is not known here")
        else:
            total += found
            whole.notes.append(
                f"the {what} tower ({units.format_count(found)} parameters) is counted, not run: text alone is"
            )
    if whole.model_type in TEXT_OF and whole.data.get("vision_config") is None:
        whole.notes.append("the vision tower is left out: the file does not say its size")
    return total


# --- stored weights ----------------------------------------------------------------------------------------------


def _stored(config: HfConfig) -> StoredWeights | None:
    """Return how weights are packed in their files, and note that other types are counted as they are named."""
    key = next((key for key in ("quantization_config", "quantization") if config.data.get(key)), None)
    if key is None:
        return None
    part = config.part(key)
    method = str(
        part.data.get("quant_method") or part.data.get("quant_algo") or key.removesuffix("_config")
    ).lower()
    bits, group = _bits(method, part), part.data.get("group_size", part.data.get("q_group_size"))
    groups = group if isinstance(group, int) and not isinstance(group, bool) and 0 < group < 1 << 20 else None
    packed = "packed weights" if bits is None else f"weights of {bits} bits"
    config.notes.append(
        f"{key} ({method[:20]}, {packed}) is left aside: weights are counted in the type that the scenario names"
    )
    return StoredWeights(method=method, bits=bits, group_size=groups)


def _bits(method: str, part: HfConfig) -> int | None:
    """Return the bits of a packed weight, from the field or the method's name."""
    for key in ("bits", "w_bit", "nbits", "num_bits"):
        value = part.data.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 32:
            return value
    if part.data.get("load_in_4bit") is True or "4" in method:
        return 4
    if part.data.get("load_in_8bit") is True or "8" in method:
        return 8
    groups = part.data.get("config_groups")
    inner = [found.get("weights") for found in groups.values()] if isinstance(groups, dict) else []
    widths = [found.get("num_bits") for found in inner if isinstance(found, dict)]
    return next((bits for bits in widths if bits in (2, 3, 4, 5, 6, 8)), None)


def _as_name(text: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in text.lower()).strip("_") or "model"

"""What checkpoints must have in common before their average is a model: tensors, configurations, tokenizers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from sandtable.errors import ConfigError
from sandtable_workloads.rlhf.soups.checkpoint_files import Checkpoint
from sandtable_workloads.rlhf.soups.soup_arithmetic import NAMES

Say = Callable[[str], None]

# how far weights may be from a sum of one
TOLERANCE: Final = 1e-6
# what shapes do not show and a forward pass depends on
_AGREE: Final = (
    "model_type",
    "vocab_size",
    "tie_word_embeddings",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
)
# what says nothing of the model's arithmetic
_NO_MATTER: Final = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "_commit_hash")
TOKENIZERS: Final = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "added_tokens.json",
)
# of a tokenizer.json: how text becomes ids; padding and truncation are whatever the last run had set
_OF_TOKENIZER: Final = ("added_tokens", "normalizer", "pre_tokenizer", "model")


def normalized(weights: Sequence[float] | None, n_models: int, *, normalize: bool = False) -> tuple[float, ...]:
    """Return the weight of each model: equal ones for None, divided by their sum with ``normalize``.

    Raises:
        ConfigError: not as many as models, none that sum to one, or no numbers.
    """
    if weights is None:
        return (1 / n_models,) * n_models
    if len(weights) != n_models:
        raise ConfigError(f"{len(weights)} weights for {n_models} checkpoints: give one for each")
    total = math.fsum(weights)
    if not math.isfinite(total):
        raise ConfigError("weights are finite numbers")
    if normalize:
        if abs(total) < TOLERANCE:
            raise ConfigError("weights that sum to zero cannot be normalised")
        return tuple(weight / total for weight in weights)
    if abs(total - 1) > TOLERANCE:
        raise ConfigError(
            f"weights sum to {total:.6g}, not to one, and give no average: --normalize divides them by their sum"
        )
    return tuple(weights)


def check_same(models: Sequence[Checkpoint], *, ignore_tokenizer: bool, say: Say) -> None:
    """Refuse models that do not fit together, and say what of their configurations differs otherwise.

    Raises:
        ConfigError: tensors, types, shapes, configurations or tokenizers that differ; names the first.
    """
    first = models[0]
    for other in models[1:]:
        _check_tensors(first, other)
        if first.is_folder != other.is_folder:
            raise ConfigError(
                f"is a {_kind(other)} and {first.path} a {_kind(first)}: name all alike", file=str(other.path)
            )
        if first.is_folder:
            _check_configurations(first.path, other.path, say)
            if not ignore_tokenizer:
                _check_tokenizers(first.path, other.path, say)


def _kind(model: Checkpoint) -> str:
    return "folder" if model.is_folder else "file"


def _check_tensors(first: Checkpoint, other: Checkpoint) -> None:
    for one, two in ((first, other), (other, first)):
        missing = [name for name in one.tensors if name not in two.tensors]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ConfigError(f"has no tensor {missing[0]!r}{more}, which {one.path} has", file=str(two.path))
    for name, tensor in first.tensors.items():
        found = other.tensors[name]
        for what, here, there in (("shape", found.shape, tensor.shape), ("type", found.dtype, tensor.dtype)):
            if here != there:
                raise ConfigError(
                    f"{name!r} has {what} {_shown(here)}, and in {first.path} {_shown(there)}"
                    + (_in_one_type(other.path, tensor.dtype) if what == "type" else ""),
                    file=str(found.file),
                )


def _in_one_type(path: Path, dtype: str) -> str:
    """Return how a model comes to the type of another: it is averaged with itself."""
    if dtype not in NAMES:
        return ""
    return f": write both in one type, with 'sandtable soup {path} {path} -o NAME --dtype {NAMES[dtype]}'"


def _shown(what: object) -> str:
    return str(list(what)) if isinstance(what, tuple) else str(what)


def _check_configurations(first: Path, other: Path, say: Say) -> None:
    one, two = (_json(folder / "config.json") for folder in (first, other))
    if one is None or two is None:
        return
    differ = [key for key in sorted(set(one) | set(two)) if key not in _NO_MATTER and one.get(key) != two.get(key)]
    for key in differ:
        if key in _AGREE and key in one and key in two:
            raise ConfigError(
                f"{key} is {two[key]!r}, and in {first} {one[key]!r}", file=str(other / "config.json")
            )
    if differ:
        say(f"  ! configurations of {first} and {other} differ in {', '.join(differ)}: the first one's is kept")


def _check_tokenizers(first: Path, other: Path, say: Say) -> None:
    there = [[name for name in TOKENIZERS if (folder / name).is_file()] for folder in (first, other)]
    both = [name for name in there[0] if name in there[1]]
    if not both and all(there):
        raise ConfigError(
            f"its tokenizer is in {there[1][0]}, that of {first} in {there[0][0]}, and they cannot be compared: "
            "--ignore-tokenizer if they are the same",
            file=str(other),
        )
    if not both and any(there):
        say(f"  ! only one of {first} and {other} has a tokenizer: not compared")
    for name in both:
        found = _difference(first / name, other / name)
        if found:
            raise ConfigError(
                f"another tokenizer than that of {first}: {found}; rows of embeddings would not mean the same "
                "(--ignore-tokenizer averages them all the same)",
                file=str(other / name),
            )


def _difference(one: Path, two: Path) -> str:
    """Say how two files of tokenizers differ; empty where they mean the same."""
    if one.read_bytes() == two.read_bytes():
        return ""
    first, second = _json(one), _json(two)
    if first is None or second is None:
        return "the contents differ"
    if one.name != "tokenizer.json":
        return _differing_words(first, second)
    found = [part for part in _OF_TOKENIZER if _plain(first.get(part)) != _plain(second.get(part))]
    if not found:
        return ""
    words = [_vocabulary(each) for each in (first, second)]
    return _differing_words(*words) or f"{' and '.join(found)} differ"


def _differing_words(one: Mapping[str, Any], two: Mapping[str, Any]) -> str:
    if len(one) != len(two):
        return f"{len(two)} tokens instead of {len(one)}"
    for word, number in one.items():
        if two.get(word) != number:
            return f"token {word!r} is {two.get(word, 'missing')} instead of {number}"
    return ""


def _vocabulary(tokenizer: Mapping[str, Any]) -> dict[str, Any]:
    model = tokenizer.get("model") or {}
    words = model.get("vocab") or {}
    if isinstance(words, list):  # unigram: pieces with scores
        words = {piece[0]: place for place, piece in enumerate(words)}
    return dict(words) | {each["content"]: each["id"] for each in tokenizer.get("added_tokens") or ()}


def _plain(part: Any) -> Any:
    """Return a part of a tokenizer with merges written in one way: pairs, or two words with a space between."""
    if isinstance(part, dict) and isinstance(part.get("merges"), list):
        merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in part["merges"]]
        return part | {"merges": merges}
    return part


def _json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None

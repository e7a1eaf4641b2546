"""What a family of models is, and how the fields of its ``config.json`` are read: names, types, bounds, defaults.

A family says under which names its files keep a size, which yes-or-no fields lead to which part of a shape, what all
its models have, and what a file may leave out. Every fault of a file becomes one sentence that names the field.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sandtable.errors import ConfigError, did_you_mean
from sandtable_workloads.transformer.shapes import MOST, MOST_LAYERS, Activation

Fields = dict[str, Any]

# what families call the same thing; of each, the first is what most files say
NAMES: Mapping[str, tuple[str, ...]] = {
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "width": ("hidden_size", "n_embd", "d_model", "n_embed", "dim"),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv", "n_kv_heads", "multi_query_group_num"),
    "head_dim": ("head_dim", "kv_channels"),
    "neurons": ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "ffn_intermediate_size"),
    "vocabulary": ("vocab_size", "padded_vocab_size"),
    "positions": ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"),
    "experts": ("n_routed_experts", "num_routed_experts", "num_local_experts", "num_experts", "moe_num_experts"),
    "top_k": (
        "num_experts_per_tok",
        "num_experts_per_token",
        "experts_per_token",
        "moe_top_k",
        "moe_k",
        "moe_topk",
    ),
    "expert_neurons": ("moe_intermediate_size", "expert_intermediate_size", "moe_ffn_hidden_size"),
    "shared_experts": ("n_shared_experts", "num_shared_experts", "num_shared_expert", "moe_num_shared_experts"),
    "shared_neurons": ("shared_expert_intermediate_size", "shared_intermediate_size"),
    "first_dense": ("first_k_dense_replace", "num_dense_layers", "n_dense_layers"),
}
# what a file of a model on its own must say itself, whatever the class would take in its place
_NEEDED = frozenset({"layers", "width", "heads", "neurons", "vocabulary", "experts", "top_k", "expert_neurons"})

_ACTIVATIONS: Mapping[str, Activation] = {
    "relu": "relu",
    "relu2": "relu2",
    "silu": "silu",
    "swish": "silu",
    "swiglu": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu",
    "gelu_fast": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "gelu_python": "gelu",
    "geglu": "gelu",
}
_ACTIVATION_NAMES = ("hidden_act", "hidden_activation", "activation_function", "activation")

# a field by such a name, with a number above one in it, changes the shape: a family that does not read it says so
_TELLING = re.compile(
    r"expert|moe_|lora_rank|key_value_heads|kv_heads|mamba|ssm_|linear_(num|key|value|conv)|conv_kernel|altup|laurel"
    r"|cross_attention|num_decoder_layers|decoder_layers|index_n_heads|block_configs|query_group"
)
_HARMLESS = re.compile(r"_freq$|expert_groups?$|_group$|loss|jitter|capacity|num_experts_per_group|_dtype$")


@dataclass(frozen=True, kw_only=True)
class Family:
    """How one kind of ``config.json`` says what a shape is.

    Attributes:
        fixed: Fields of `ModelShape` that all models of the family share.
        flags: Yes-or-no fields of `ModelShape`, each with the field of the file that says it.
        defaults: What its class takes for what a file leaves out: sizes by their key in `NAMES`, others by their
            field. Needed sizes are only left out by the parts of composite models.
        usual: The names that its files give to sizes, where these are not the first in `NAMES`.
        grouped: Whether key/value heads can be fewer than heads.
        more: What else is read, each with what was found before.
    """

    fixed: Mapping[str, Any] = field(default_factory=dict)
    flags: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    usual: Mapping[str, str] = field(default_factory=dict)
    grouped: bool = True
    more: tuple[Callable[[HfConfig, Fields], Fields], ...] = ()

    def like(self, *more: Callable[[HfConfig, Fields], Fields], **changes: Mapping[str, Any]) -> Family:
        """Return a family like this one: mappings are added to, and more is read after the rest."""
        merged = {name: {**getattr(self, name), **changes.get(name, {})} for name in ("fixed", "flags", "defaults")}
        usual = {**self.usual, **changes.get("usual", {})}
        return Family(**merged, usual=usual, grouped=self.grouped, more=(*self.more, *more))


class HfConfig:
    """The mapping of a ``config.json`` with its file and family, so that a fault can be said in one sentence.

    Args:
        data: The mapping.
        file: Where it is from.
        family: What it is read as.
        nested: Whether it is a part of a composite model, which leaves out all that its class takes anyway.
    """

    def __init__(self, data: Mapping[str, Any], file: str, family: Family, *, nested: bool = False) -> None:
        self.data, self.file, self.family, self.nested = data, file, family, nested
        self.model_type = str(data.get("model_type"))
        self.notes: list[str] = []
        self._read: set[str] = set()

    def fault(self, message: str) -> ConfigError:
        """Return the error that says so of this file."""
        return ConfigError(message, file=self.file)

    def given(self, *keys: str) -> tuple[str, Any] | None:
        """Return the first of ``keys`` that is there and not null, with its value; they may not contradict."""
        self._read.update(keys)
        found = [(key, self.data[key]) for key in keys if self.data.get(key) is not None]
        for key, value in found[1:]:
            if value != found[0][1]:
                raise self.fault(f"{found[0][0]} {shown(found[0][1])} and {key} {shown(value)} differ: keep one")
        return found[0] if found else None

    def is_null(self, key: str) -> bool:
        """Whether the file says null, which is not the same as nothing."""
        self._read.add(key)
        return key in self.data and self.data[key] is None

    def count(self, *keys: str, default: int | None = None, least: int = 1, most: int = MOST) -> int:
        """Return the first of ``keys`` that is there, a whole number.

        Raises:
            ConfigError: none is there and there is no ``default``, or it is no whole number within the bounds.
        """
        found = self.given(*keys)
        if found is None and default is None:
            raise self.fault(f"a {self.model_type} model needs {keys[0]!r}: add it, a number")
        return self.whole(*found, least=least, most=most) if found is not None else int(default or 0)

    def whole(self, key: str, value: Any, *, least: int = 1, most: int = MOST) -> int:
        """Return a value as a whole number within bounds; 4096.0 is one, "4096" and true are not."""
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or (isinstance(value, float) and not value.is_integer()) or value < least:
            kind = "a positive whole number" if least == 1 else f"a whole number from {least}"
            raise self.fault(f"{key} must be {kind}, not {shown(value)}")
        if value > most:
            raise self.fault(f"{key} {shown(value)} is more than a model can have: at most {most:,}")
        return int(value)

    def size(self, role: str, default: int | None = None, *, least: int = 1) -> int:
        """Return a size by its key in `NAMES`; what the class takes where a file may leave it out."""
        own = self.family.defaults.get(role) if self.nested or role not in _NEEDED else None
        most = MOST_LAYERS if role in ("layers", "first_dense") else MOST
        return self.count(*self.names(role), default=own if default is None else default, least=least, most=most)

    def names(self, role: str) -> tuple[str, ...]:
        """Return the names of a size, the family's own first."""
        usual = self.family.usual.get(role)
        return tuple(dict.fromkeys((usual, *NAMES[role]))) if usual else NAMES[role]

    def flag(self, key: str, default: bool | None = None) -> bool:
        """Return a yes-or-no field; null is left out."""
        found = self.given(key)
        if found is None:
            return bool(self.family.defaults.get(key, False) if default is None else default)
        if not isinstance(found[1], bool) and found[1] not in (0, 1):
            raise self.fault(f"{key} must be true or false, not {shown(found[1])}")
        return bool(found[1])

    def real(self, key: str, default: float) -> float:
        """Return a positive finite number."""
        found = self.given(key)
        value = default if found is None else found[1]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < MOST:
            raise self.fault(f"{key} must be a positive number, not {shown(value)}")
        return float(value)

    def word(self, key: str, default: str = "") -> str:
        """Return a text."""
        found = self.given(key)
        if found is not None and not isinstance(found[1], str):
            raise self.fault(f"{key} must be a text, not {shown(found[1])}")
        return default if found is None else str(found[1])

    def items(self, key: str) -> list[Any] | None:
        """Return a list, or None where there is none."""
        found = self.given(key)
        if found is not None and not isinstance(found[1], list):
            raise self.fault(f"{key} must be a list, not {shown(found[1])}")
        return None if found is None else found[1]

    def part(self, key: str) -> HfConfig:
        """Return a nested mapping, empty where there is none."""
        found = self.given(key)
        if found is not None and not isinstance(found[1], dict):
            raise self.fault(f"{key} must be an object with fields of its own, not {shown(found[1])}")
        inner = {} if found is None else found[1]
        return HfConfig({"model_type": self.model_type} | inner, self.file, self.family, nested=True)

    def activation(self) -> Activation:
        """Return the activation of the FFN."""
        key = next((key for key in _ACTIVATION_NAMES if self.data.get(key)), "hidden_act")
        name = self.word(key, str(self.family.defaults.get("activation", "silu")))
        if name not in _ACTIVATIONS:
            raise self.fault(f"activation {name!r} is not known{did_you_mean(name, _ACTIVATIONS)}")
        return _ACTIVATIONS[name]

    def check_all_read(self) -> None:
        """Refuse a file that says something about the shape that its family does not know.

        Raises:
            ConfigError: naming the field.
        """
        kinds = self.items("layer_types") or []
        other = next((kind for kind in kinds if "attention" not in str(kind) or "linear" in str(kind)), None)
        if other is not None:
            raise self.fault(
                f"layer_types has {shown(other)}, which is not known here: only layers of attention are"
            )
        for key, value in self.data.items():
            telling = _TELLING.search(key) and not _HARMLESS.search(key)
            if telling and key not in self._read and _counts_something(value):
                raise self.fault(
                    f"{key} {shown(value)} is no field of a {self.model_type} model that is known here: "
                    "a shape read without it would be another model's"
                )


def fields_of(c: HfConfig) -> Fields:
    """Return the fields of `ModelShape` that a configuration says, read as its family."""
    family = c.family
    found = _sizes(c) | {"activation": c.activation()} | dict(family.fixed)
    found |= {flag: c.flag(key) for flag, key in family.flags.items()}
    for more in family.more:
        found |= more(c, found)
    c.check_all_read()
    return found


def _sizes(c: HfConfig) -> Fields:
    """Read what every family has, under its own names."""
    width, heads = c.size("width"), c.size("heads")
    per_width = c.family.defaults.get("neurons_per_width")
    return {
        "n_layers": c.size("layers"),
        "d_model": width,
        "n_heads": heads,
        "n_kv_heads": _kv_heads(c, heads),
        "head_dim": _head_dim(c, width, heads),
        "n_neurons": c.size("neurons", None if per_width is None else per_width * width),
        "vocabulary": c.size("vocabulary"),
    }


def _kv_heads(c: HfConfig, heads: int) -> int:
    names = c.names("kv_heads")
    if not c.family.grouped:
        if c.count(*names, default=heads) != heads:
            raise c.fault(f"{c.model_type} models have as many key/value heads as heads: take {names[0]} out")
        return heads
    if c.is_null(names[0]):
        return c.count(*names, default=heads)
    found = c.size("kv_heads", int(c.family.defaults.get("kv_heads", heads)))
    if heads % found:
        raise c.fault(
            f"{names[0]} {found} must divide {c.names('heads')[0]} {heads}"
            if c.given(*names)
            else f"a {c.model_type} model needs {names[0]!r}: add it, a number"
        )
    return found


def _head_dim(c: HfConfig, width: int, heads: int) -> int:
    """The class's own where it has one; else heads share the width."""
    names = c.names("head_dim")
    own = None if c.is_null(names[0]) else c.family.defaults.get("head_dim")
    if own is None and c.given(*names) is None and width % heads:
        raise c.fault(
            f"{c.names('heads')[0]} {heads} does not divide {c.names('width')[0]} {width}: add {names[0]!r}"
        )
    return c.count(*names, default=own or max(1, width // heads))


def shown(value: Any) -> str:
    """Return a value for a sentence, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:36]} …"


def _counts_something(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value)
    return isinstance(value, int | float) and not isinstance(value, bool) and (value > 1 or math.isnan(value))

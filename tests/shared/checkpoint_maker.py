"""Checkpoints in safetensors files for tests, written apart from the code under test."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
# how a tensor is stored: its type by the format's name, and its elements (bits of bfloat16 as uint16)
Stored = tuple[str, Array]
_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "BOOL": "?"}


def write_safetensors(
    path: Path, tensors: Mapping[str, Stored], *, odd: bool = False, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a file; with ``odd`` its tensors begin at an odd byte, as the format allows."""
    entries: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    for name, (dtype, values) in tensors.items():
        entries[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [end, end + values.nbytes]}
        end += values.nbytes
    header = json.dumps(entries).encode()
    header += b" " * ((-len(header)) % 8 + (1 if odd else 0))
    data = b"".join(values.astype(_NUMPY[dtype]).tobytes() for dtype, values in tensors.values())
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


def read_safetensors(path: Path) -> dict[str, Stored]:
    """Read a file as plainly as it can be read."""
    content = path.read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    found = {}
    for name, entry in json.loads(content[8 : 8 + length]).items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            values = np.frombuffer(content[8 + length + begin : 8 + length + end], _NUMPY[entry["dtype"]])
            found[name] = (entry["dtype"], values.reshape(entry["shape"]))
    return found


def write_folder(
    path: Path,
    shards: Sequence[Mapping[str, Stored]],
    *,
    config: Mapping[str, Any] | None = None,
    tokens: Mapping[str, int] | None = None,
    odd: bool = False,
) -> Path:
    """Write a folder as Hugging Face has them: one file or several with an index, a configuration, a tokenizer."""
    path.mkdir()
    if len(shards) == 1:
        write_safetensors(path / "model.safetensors", shards[0], odd=odd)
    else:
        names = {}
        for place, shard in enumerate(shards, 1):
            file = f"model-{place:05}-of-{len(shards):05}.safetensors"
            write_safetensors(path / file, shard, odd=odd)
            names |= dict.fromkeys(shard, file)
        (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    stated = {"model_type": "made_up", "vocab_size": 4, "torch_dtype": "float16"} | dict(config or {})
    (path / "config.json").write_text(json.dumps(stated))
    words = dict(tokens or {"a": 0, "b": 1, "c": 2, "d": 3})
    tokenizer = {"model": {"type": "BPE", "vocab": words, "merges": [["a", "b"]]}, "added_tokens": []}
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    return path

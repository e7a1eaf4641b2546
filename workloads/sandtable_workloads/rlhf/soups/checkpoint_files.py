"""Checkpoints in safetensors files: which tensors lie where, and headers of new files.

The format is that of https://github.com/huggingface/safetensors: eight bytes that say how long the header is, the
header as JSON, then the tensors. Only headers are read here, so that opening a checkpoint of any size takes
milliseconds.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sandtable.errors import ConfigError

# bytes of an element by the format's names; the floating ones are averaged, others have to be equal
FLOATS: Final = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
OTHERS: Final = {"I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1}
ITEM_BYTES: Final = FLOATS | OTHERS
METADATA: Final = "__metadata__"
ONE_FILE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
_MOST_HEADER_BYTES: Final = 100_000_000  # as the format allows
# tensors of new files begin at a multiple of this, so that they can be written past the page cache
_PAGE: Final = 4096


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a file: its type by the format's name, and the byte of the file at which it starts."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int

    @property
    def n_items(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def n_bytes(self) -> int:
        """Bytes in the file."""
        return self.n_items * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model's tensors by name, in the order of the files and in them; ``metadata`` is that of each file."""

    path: Path
    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[Path, Mapping[str, str]]

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder with a configuration, or one file alone."""
        return self.path.is_dir()

    @property
    def n_params(self) -> int:
        """Elements that are averaged."""
        return sum(tensor.n_items for tensor in self.tensors.values() if tensor.dtype in FLOATS)

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.n_bytes for tensor in self.tensors.values())

    def of_file(self, file: Path) -> list[StoredTensor]:
        """Return the tensors of one of its files."""
        return [tensor for tensor in self.tensors.values() if tensor.file == file]


def open_checkpoint(path: Path) -> Checkpoint:
    """Read the headers of a checkpoint: a folder as Hugging Face writes it, or one safetensors file.

    Raises:
        ConfigError: no such path, none or several models in it, a file that is damaged, types that are not averaged.
    """
    files, wanted = _files(path)
    tensors: dict[str, StoredTensor] = {}
    metadata = {}
    for file in files:
        found, metadata[file] = read_header(file)
        tensors |= {
            tensor.name: tensor for tensor in found if wanted is None or wanted.get(tensor.name) == file.name
        }
    missing = sorted(set(wanted or ()) - set(tensors))
    if missing:
        raise ConfigError(f"names {missing[0]!r}, which its file does not hold", file=str(path / INDEX))
    if not tensors:
        raise ConfigError("holds no tensors", file=str(path))
    return Checkpoint(path, tensors, metadata)


def _files(path: Path) -> tuple[list[Path], dict[str, str] | None]:
    """Return a checkpoint's files and, where it has an index, which of them holds each tensor."""
    if path.is_file():
        return [path], None
    if not path.is_dir():
        raise ConfigError("no such folder or file", file=str(path))
    if (path / INDEX).is_file():
        wanted = _weight_map(path / INDEX)
        return [path / name for name in sorted(set(wanted.values()))], wanted
    if (path / ONE_FILE).is_file():
        return [path / ONE_FILE], None
    found = sorted(path.glob("*.safetensors"))
    if any(file.name.startswith("adapter_model") for file in found):
        raise ConfigError(
            "holds an adapter, and averages of low-rank factors are not those of their products: merge it into its "
            "model first (merge_and_unload)",
            file=str(path),
        )
    if len(found) == 1:
        return found, None
    if found:
        raise ConfigError(f"holds {len(found)} safetensors files and no {INDEX}: name one of them", file=str(path))
    others = sorted(file.name for kind in ("*.bin", "*.pt", "*.pth", "*.gguf") for file in path.glob(kind))
    held = f", but {others[0]}: save the model as safetensors (save_pretrained)" if others else ""
    raise ConfigError(f"holds no {ONE_FILE}{held}", file=str(path))


def _weight_map(index: Path) -> dict[str, str]:
    try:
        found = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError("is no index of a checkpoint: it has no 'weight_map'", file=str(index)) from error
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and Path(name).name == name for name in found.values()
    ):
        raise ConfigError("names files outside its folder", file=str(index))
    return found


def read_header(file: Path) -> tuple[list[StoredTensor], dict[str, str]]:
    """Return the tensors of a safetensors file in the order in which they lie, and its metadata.

    Raises:
        ConfigError: no such file, one that is no safetensors file, or truncated; types that are not averaged.
    """
    try:
        with file.open("rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            prefix = opened.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or not 2 <= length <= min(_MOST_HEADER_BYTES, size - 8):
                raise ConfigError(f"is no safetensors file, or was cut short ({size} bytes)", file=str(file))
            entries = json.loads(opened.read(length))
        metadata = entries.pop(METADATA, {})
        start = 8 + length
        tensors = [_tensor(file, name, entry, start) for name, entry in entries.items()]
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=str(file)) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError("is no safetensors file: its header cannot be read", file=str(file)) from error
    tensors.sort(key=lambda tensor: tensor.offset)
    end = start + sum(tensor.n_bytes for tensor in tensors)
    if end != size:
        raise ConfigError(
            f"has {size} bytes where its header says {end}: it was {'cut short' if size < end else 'appended to'}",
            file=str(file),
        )
    return tensors, {str(key): str(value) for key, value in metadata.items()}


def _tensor(file: Path, name: str, entry: Mapping[str, Any], start: int) -> StoredTensor:
    dtype, (begin, end) = entry["dtype"], entry["data_offsets"]
    if dtype not in ITEM_BYTES:
        raise ConfigError(
            f"{name!r} has type {dtype}, and what is averaged is {', '.join(FLOATS)}: convert the model first",
            file=str(file),
        )
    tensor = StoredTensor(name, dtype, tuple(int(n) for n in entry["shape"]), file, start + begin)
    if begin < 0 or tensor.n_bytes != end - begin:
        raise ConfigError(f"{name!r} does not have the bytes of its shape", file=str(file))
    return tensor


def header_of(tensors: Iterable[tuple[str, str, Sequence[int]]], metadata: Mapping[str, str]) -> bytes:
    """Return the header of a new file with these tensors (name, type, shape), one after another, in whole pages."""
    entries: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    end = 0
    for name, dtype, shape in tensors:
        begin, end = end, end + math.prod(shape) * ITEM_BYTES[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(-(-(len(text) + 8) // _PAGE) * _PAGE - 8)
    return len(text).to_bytes(8, "little") + text

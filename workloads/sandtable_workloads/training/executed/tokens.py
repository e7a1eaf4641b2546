"""Text to batches: tokens in a memory-mapped file, cut into windows, shuffled by seed, dealt to ranks.

What batch a rank sees at a step follows from the seed and the step's number alone, so a run that resumes at step k
goes on exactly where the other one stopped. No PyTorch in here.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sandtable.errors import ConfigError
from sandtable.system import atomic_files, checksums
from sandtable_workloads.training.executed import bpe

Tokens = npt.NDArray[np.int64]

VALIDATION_FRAC = 0.1
# a small text supports no larger vocabulary of its own, and training one would take minutes
MOST_BPE_TOKENS = 2048
SHIPPED = "shakespeare.txt"


@dataclass(frozen=True, kw_only=True)
class TokenFile:
    """Tokens on disk, 16 bit each: the first ``n_train`` to train on, the rest to validate."""

    path: Path
    n_tokens: int
    n_train: int
    vocabulary: int

    def split(self, name: str) -> npt.NDArray[np.uint16]:
        """Return the tokens to "train" on or for "validation", mapped and not read."""
        tokens = np.memmap(self.path, dtype=np.uint16, mode="r", shape=(self.n_tokens,))
        return tokens[: self.n_train] if name == "train" else tokens[self.n_train :]


def read_text(text: str | None) -> str:
    """Return the text at that path, or the one that ships with the package.

    Raises:
        ConfigError: a path that cannot be read.
    """
    if text is None:
        return (
            resources.files("sandtable_workloads.training.executed")
            .joinpath("text", SHIPPED)
            .read_text(encoding="utf-8")
        )
    try:
        return Path(text).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = "is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise ConfigError(f"parameters.text: {reason}", file=text) from None


def prepare_tokens(folder: Path, *, text: str | None, tokenizer: str, vocabulary: int) -> TokenFile:
    """Write the tokens of a text into ``folder``, unless they are there already.

    Args:
        folder: Where the file goes; written beside and renamed.
        text: Path of a text; None takes the one that ships.
        tokenizer: ``byte``, or ``bpe`` trained on this text.
        vocabulary: Rows of the model's embedding: no token may be larger.

    Raises:
        ConfigError: the text cannot be read, or the vocabulary is smaller than the 256 bytes.
    """
    if vocabulary < bpe.N_BYTES:
        raise ConfigError(f"a model of {vocabulary} tokens cannot read bytes: its vocabulary needs at least 256")
    content = read_text(text)
    size = min(vocabulary, MOST_BPE_TOKENS) if tokenizer == "bpe" else bpe.N_BYTES
    digest = hashlib.sha256(f"{tokenizer} {size} {content}".encode()).hexdigest()[:16]
    path = folder / f"tokens-{digest}.bin"
    about = path.with_suffix(".json")
    stored = _whole(path, about)
    if stored is None:
        _write(path, about, content, tokenizer, size)
        stored = _whole(path, about)
        if stored is None:
            raise ConfigError("the disk does not give back what was written to it", file=str(path))
    n_tokens = stored["n_tokens"]
    return TokenFile(
        path=path,
        n_tokens=n_tokens,
        n_train=n_tokens - int(n_tokens * VALIDATION_FRAC),
        vocabulary=stored["vocabulary"],
    )


def _whole(path: Path, about: Path) -> dict[str, Any] | None:
    """Return what is stated about a token file, None unless both files are whole: then they are written anew."""
    try:
        stored: dict[str, Any] = json.loads(checksums.checked_json(about.read_bytes(), str(about), required=True))
        return stored if checksums.file_digest(path) == stored["content"] else None
    except (OSError, ConfigError):
        return None


def _write(path: Path, about: Path, content: str, tokenizer: str, size: int) -> None:
    tokens = encode(content, tokenizer, size)
    data = tokens.astype(np.uint16).tobytes()
    fields = {"n_tokens": len(tokens), "vocabulary": size, "tokenizer": tokenizer}
    atomic_files.write_atomically(path, data)
    text = json.dumps(fields | {"content": checksums.digest(data)})
    atomic_files.write_atomically(about, checksums.sealed_json(text))


def encode(content: str, tokenizer: str, size: int) -> Tokens:
    """Return the tokens of a text: its bytes, or those of an encoding of ``size`` tokens trained on it."""
    if tokenizer == "byte":
        return np.frombuffer(content.encode(), dtype=np.uint8).astype(np.int64)
    encoder = bpe.Encoder(bpe.train(content, size))
    return np.array(encoder.encode(content), dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class Batches:
    """Windows of a token file in a seeded order, dealt to ``n_ranks``.

    Windows do not overlap; every epoch has an order of its own. Step s of rank r takes ``batch`` windows for each of
    ``accumulation`` micro-batches: the ranks' micro-batches of one step lie side by side in the order.
    """

    tokens: npt.NDArray[np.uint16]
    sequence_tokens: int
    batch: int
    seed: int
    rank: int = 0
    n_ranks: int = 1
    accumulation: int = 1

    def __post_init__(self) -> None:
        if self.n_windows < 1:
            raise ConfigError(
                f"the text has {len(self.tokens)} tokens to draw from and a sequence needs "
                f"{self.sequence_tokens + 1}: take shorter sequences, or a longer text"
            )

    @property
    def n_windows(self) -> int:
        """Windows in one epoch; each needs one token more than its length, the last one's successor."""
        return (len(self.tokens) - 1) // self.sequence_tokens

    def at(self, step: int, micro: int = 0) -> tuple[Tokens, Tokens]:
        """Return inputs and the tokens that follow them, int64 [batch, sequence] each."""
        first = ((step * self.accumulation + micro) * self.n_ranks + self.rank) * self.batch
        rows = np.stack([self._window(first + index) for index in range(self.batch)])
        return rows[:, :-1], rows[:, 1:]

    def _window(self, number: int) -> Tokens:
        epoch, index = divmod(number, self.n_windows)
        start = int(_order(self.n_windows, self.seed, epoch)[index]) * self.sequence_tokens
        return np.asarray(self.tokens[start : start + self.sequence_tokens + 1], dtype=np.int64)


@lru_cache(maxsize=4)
def _order(n_windows: int, seed: int, epoch: int) -> npt.NDArray[np.intp]:
    return np.random.default_rng((seed, epoch)).permutation(n_windows)

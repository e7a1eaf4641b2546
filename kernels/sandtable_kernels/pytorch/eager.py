"""What eager PyTorch launches for the parts of a transformer between its products: kernels, and bytes they move.

Each composite is a row of element-wise kernels that read and write whole tensors; nothing is fused. Counts are per
call, in units of one tensor's elements; small per-token columns (a norm's statistics) are kernels without bytes worth
counting. Read off PyTorch's dispatcher, and a test holds them to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from sandtable import yaml_files
from sandtable.demand.operator_shapes import MemoryBoundShape


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes read and written together, kernels launched, exponentials and the like evaluated."""

    n_bytes: float
    n_kernels: float
    n_special: float = 0.0

    @property
    def shape(self) -> MemoryBoundShape:
        """The same as columns of a memory-bound operator."""
        return MemoryBoundShape(self.n_bytes, self.n_kernels, self.n_special)

    def __add__(self, other: Traffic) -> Traffic:
        """Both, one after the other."""
        return Traffic(
            self.n_bytes + other.n_bytes, self.n_kernels + other.n_kernels, self.n_special + other.n_special
        )

    def times(self, factor: float) -> Traffic:
        """Return ``factor`` of them."""
        return Traffic(self.n_bytes * factor, self.n_kernels * factor, self.n_special * factor)


@lru_cache(maxsize=1)
def _counts() -> dict[str, Any]:
    """Return what the file beside this one says of each composite."""
    found: dict[str, Any] = yaml_files.plain(yaml_files.read_yaml(Path(__file__).with_suffix(".yaml")))
    return found


def _launched(composite: str, *, backward: bool = False) -> tuple[float, float]:
    """Return passes over the tensor and kernels."""
    counts = _counts()[composite]["backward" if backward else "forward"]
    return counts["passes"], counts["kernels"]


def norm(n_tokens: float, width: float, item_bytes: float, *, backward: bool = False) -> Traffic:
    """Root-mean-square norm with a gain."""
    passes, kernels = _launched("norm", backward=backward)
    return Traffic(passes * n_tokens * width * item_bytes, kernels)


def add(n_tokens: float, width: float, item_bytes: float) -> Traffic:
    """Sum of two tensors: into the residual stream, or of the gradients that meet there."""
    passes, kernels = _launched("add")
    return Traffic(passes * n_tokens * width * item_bytes, kernels)


def gate(n_tokens: float, n_neurons: float, item_bytes: float, *, backward: bool = False) -> Traffic:
    """Activation of the gate times the other half of a joined projection."""
    passes, kernels = _launched("gate", backward=backward)
    return Traffic(passes * n_tokens * n_neurons * item_bytes, kernels, n_tokens * n_neurons)


def rope(n_tokens: float, turned: float, values: float, item_bytes: float, *, backward: bool = False) -> Traffic:
    """Rotary positions of ``turned`` query and key numbers per token, beside ``values`` that are not turned.

    One complex product, whose loop is not made of vector instructions: each number counts as special. Backward copies
    the gradients of values beside those of queries and keys.
    """
    passes, kernels = _launched("rope", backward=backward)
    joined = 2 * values if backward else 0
    return Traffic((passes * turned + joined) * n_tokens * item_bytes, kernels, turned * n_tokens)


def embedding(
    n_tokens: float, width: float, vocabulary: float, item_bytes: float, *, backward: bool = False
) -> Traffic:
    """Rows by token; backward clears a gradient of the whole table and adds each token's row."""
    if not backward:
        return Traffic(2 * n_tokens * width * item_bytes, 1)
    return Traffic((3 * n_tokens + vocabulary) * width * item_bytes, 2)


def cross_entropy(n_tokens: float, vocabulary: float, item_bytes: float, *, backward: bool = False) -> Traffic:
    """Log-softmax in float32 and the loss of the right token; narrower logits are widened first."""
    passes = 4 * (4 if backward else 2)
    widened = 0.0 if item_bytes == 4 else item_bytes + 4
    kernels = (3 if backward else 2) + (item_bytes != 4)
    return Traffic((passes + widened) * n_tokens * vocabulary, kernels, n_tokens * vocabulary)


def adamw(n_params: float, n_tensors: float, item_bytes: float, state_bytes: float = 4) -> Traffic:
    """One fused step: weights and two states read and written, gradients read; see the file for the launches."""
    counts = _counts()["adamw"]
    n_kernels = counts["step_kernels"] + counts["tensor_kernels"] * n_tensors
    return Traffic(n_params * (3 * item_bytes + 4 * state_bytes), n_kernels)

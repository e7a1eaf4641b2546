"""The weights that are too small to be worth a file: biases, norms and positions, always in memory as float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sandtable_kernels.files.buffers import aligned_empty
from sandtable_kernels.files.weights import fill
from sandtable_kernels.operations.elementwise import NormWeights
from sandtable_workloads.transformer.shapes import ModelShape

F32 = npt.NDArray[np.float32]
SEED = 1
SCALE = 0.02  # as models of this kind are initialised


class SmallWeights:
    """Biases, norms and positions of a model: views of one buffer; None, or empty, where the shape has none.

    Attributes:
        flat: All of them, float32 [n]; what has no place below, such as norms of queries and keys, is held in it but
            not computed with.
        qkv_bias: By layer, float32 [qkv rows].
        ffn_bias: By layer, added before the activation, float32 [neurons].
        head_bias: Float32 [vocabulary].
        positions: Learned positions, float32 [n_positions, d_model].
        first: The norm of what enters layer 0.
        after_attention, after_ffn: By layer: the bias of the block that ends, and the norm of the one that follows.
    """

    def __init__(self, shape: ModelShape) -> None:
        self.flat: F32 = aligned_empty((shape.small_params,), np.float32)
        fill(self.flat, "float32", SEED, 0, SCALE)
        self._end = 0
        self._has_shift = shape.norm == "layer"
        layers = [self._layer(shape) for _ in range(shape.n_layers)]
        self.positions = self._take(shape.n_positions * shape.d_model).reshape(-1, shape.d_model)
        last: dict[str, F32 | None] = self._norm(shape) if shape.final_norm else {}
        self.head_bias = self._take(shape.vocabulary) if shape.head_bias else None
        assert self._end <= len(self.flat), f"{shape.name} counts fewer small parameters than have a place here"
        self.qkv_bias = [layer["qkv_bias"] for layer in layers]
        self.ffn_bias = [layer["ffn_bias"] for layer in layers]
        norms = [layer["norms"] for layer in layers]
        self.first = NormWeights(**norms[0][0])
        self.after_attention = [
            NormWeights(bias=layer["output_bias"], **own[-1]) for layer, own in zip(layers, norms, strict=True)
        ]
        following = [own[0] for own in norms[1:]] + [last]
        self.after_ffn = [
            NormWeights(bias=layer["down_bias"], **norm) for layer, norm in zip(layers, following, strict=True)
        ]

    def _take(self, n: int) -> F32:
        part = self.flat[self._end : self._end + n]
        self._end += n
        return part

    def _layer(self, shape: ModelShape) -> dict[str, Any]:
        d = shape.d_model
        layer: dict[str, Any] = {
            "qkv_bias": self._take(shape.qkv_rows) if shape.attention_bias else None,
            "output_bias": self._take(d) if shape.output_bias else None,
            "ffn_bias": None,
            "down_bias": None,
        }
        if shape.ffn_bias:
            # gated: the bias of the gate comes last, and is the one before the activation
            layer["ffn_bias"] = self._take((shape.n_vectors - 1) * shape.n_neurons)[-shape.n_neurons :]
            layer["down_bias"] = self._take(d)
        # one norm in a layer is shared by attention and feed-forward; of four, the first and the last are computed
        layer["norms"] = [self._norm(shape) for _ in range(shape.norms_per_layer)] or [{}]
        self._take(shape.qk_norm_params)
        return layer

    def _norm(self, shape: ModelShape) -> dict[str, F32 | None]:
        if shape.norm == "layer_bare":
            return {}
        gain = self._take(shape.d_model)
        gain += 1
        return {"gain": gain, "shift": self._take(shape.d_model) if self._has_shift else None}

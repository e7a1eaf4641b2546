"""What one layer with an adapter demands of a device, forward and backward, and the model's ends.

Frozen weights get no gradient, so that a product's backward pass is one product, not two. Names of element-wise work
are those of the stack file, under ``efficiency.memory_bound.<name>``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from sandtable.demand.operator_shapes import BACKWARD_PASSES
from sandtable_workloads.finetuning.finetuning_memory import (
    FIRST_PROMPTED,
    LOSS_CHUNK,
    PACKED_BYTES,
    PROMPT_TOKENS,
    is_prompted,
    joined_outputs,
    layer_weights,
    linear_widths,
    lora_products,
)
from sandtable_workloads.finetuning.finetuning_parameters import JOINED, Finetuning
from sandtable_workloads.training import step_demand
from sandtable_workloads.training.step_demand import Demand, LayerKind, Software
from sandtable_workloads.training.step_numbers import Configuration
from sandtable_workloads.transformer.shapes import ModelShape


def norm_name(shape: ModelShape) -> str:
    """Return what a stack file calls the model's norms."""
    return "norm" if shape.norm == "rms" else "layer norm"


def forward(p: Finetuning, shape: ModelShape, c: Configuration, software: Software) -> list[Demand]:
    """Return what one layer does in the forward pass."""
    wide, b = c.tokens * shape.d_model, c.item_bytes
    products = [*step_demand.attention_products(c), *step_demand.ffn_products(c, LayerKind())]
    turned = c.tokens * (shape.n_heads + shape.n_kv_heads) * shape.head_dim
    return [
        *products,
        step_demand.attention(c, LayerKind(), 1.0),
        replace(software.memory_bound(norm_name(shape), 2 * wide * b, c), times=c.norms),
        replace(software.memory_bound("residual", 3 * wide * b, c), times=2.0),
        activation(shape, c, software, ""),
        software.memory_bound("rope", 2 * turned * b, c),
        *_added(p, shape, c, software, ""),
        *_widening(p, products, c, software, ""),
    ]


def activation(shape: ModelShape, c: Configuration, software: Software, suffix: str) -> Demand:
    """Return the activation: two kernels with a gate, one without."""
    passes = shape.n_vectors if not suffix else 2 * shape.n_vectors - 1
    found = software.memory_bound(f"activation{suffix}", c.tokens * shape.n_neurons * passes * c.item_bytes, c)
    return found if shape.n_vectors > 2 else replace(found, times=0.5)


def _added(p: Finetuning, shape: ModelShape, c: Configuration, software: Software, suffix: str) -> list[Demand]:
    """Return what an adapter adds to one layer; without ``suffix`` forward, else backward."""
    t, b, d = c.tokens, c.item_bytes, shape.d_model
    if p.adapter == "lora":
        return _lora(p, shape, c, software, suffix)
    found: list[Demand] = []
    if is_prompted(p):
        share = max(0, shape.n_layers - FIRST_PROMPTED) / shape.n_layers
        prompt = step_demand.gemm("prompt", c, PROMPT_TOKENS, shape.qkv_rows, d)
        seen = software.memory_bound(f"prompt{suffix}", 2 * t * shape.n_heads * shape.head_dim * b, c)
        found += [replace(prompt, times=share), replace(seen, times=share)]
    if p.adapter == "adapter_v2":
        widths = linear_widths(shape)
        scaled = software.memory_bound(f"scaled{suffix}", 2 * t * sum(o for _, o in widths) / len(widths) * b, c)
        found.append(replace(scaled, times=float(len(widths))))
    return found


def _lora(p: Finetuning, shape: ModelShape, c: Configuration, software: Software, suffix: str) -> list[Demand]:
    """Return LoRA's products and what adds them: into all ranks of the joined projection at once, out of each."""
    t, b, rank = c.tokens, c.item_bytes, p.lora_rank
    joined, found = len(p.joined_targets), list[Demand]()
    if joined:
        found += [
            step_demand.gemm("lora down", c, t, joined * rank, shape.d_model),
            step_demand.gemm("lora up", c, t, joined_outputs(p, shape) / joined, rank, batch=float(joined)),
        ]
    for inputs, outputs in lora_products(p, shape):
        found += [
            step_demand.gemm("lora down", c, t, rank, inputs),
            step_demand.gemm("lora up", c, t, outputs, rank),
        ]
    found = [replace(product, times=2.0 if suffix else 1.0) for product in found]
    if joined:
        # what some parts get is copied between zeros
        moved = 2 * t * (shape.qkv_rows if joined < len(JOINED) else joined_outputs(p, shape)) * b
        found.append(software.memory_bound(f"lora{suffix}", moved, c))
    return found + [software.memory_bound(f"lora{suffix}", 2 * t * o * b, c) for _, o in lora_products(p, shape)]


def _widening(
    p: Finetuning, products: list[Demand], c: Configuration, software: Software, suffix: str
) -> Iterator[Demand]:
    """Yield, for each packed product, how its weights are made wide: read packed, written, read and cast."""
    if p.quantization == "none":
        return
    name = ("dequantise" if p.quantization == "nf4" else "dequantise nested") + suffix
    for product in products:
        n_bytes = product.shape.n * product.shape.k * (PACKED_BYTES[p.quantization] + c.item_bytes)
        yield replace(software.memory_bound(name, n_bytes, c), times=product.times)


def backward(p: Finetuning, shape: ModelShape, c: Configuration, software: Software) -> list[Demand]:
    """Return what one layer does in the backward pass; frozen weights of flat sharded parameters get gradients too."""
    wide, b = c.tokens * shape.d_model, c.item_bytes
    products = [*step_demand.attention_products(c), *step_demand.ffn_products(c, LayerKind())]
    every = p.sharding == "fsdp_full" and p.devices > 1
    gradients = [g for product in products for g in list(step_demand.backward_of(product))[: 2 if every else 1]]
    turned = c.tokens * (shape.n_heads + shape.n_kv_heads) * shape.head_dim
    held = layer_weights(shape) * b if every else 0.0
    return [
        *gradients,
        step_demand.attention(c, LayerKind(), BACKWARD_PASSES),
        replace(software.memory_bound(f"{norm_name(shape)} backward", 3 * wide * b, c), times=c.norms),
        replace(software.memory_bound("residual backward", 3 * wide * b, c), times=2.0),
        activation(shape, c, software, " backward"),
        software.memory_bound("rope backward", 2 * turned * b, c),
        software.memory_bound("joined backward", 2 * c.tokens * shape.qkv_rows * b, c),
        *_added(p, shape, c, software, " backward"),
        *_widening(p, products, c, software, " backward"),
        *([software.memory_bound("gradient sum", 3 * held, c)] if every else []),
    ]


def ends(c: Configuration, software: Software) -> tuple[list[Demand], list[Demand]]:
    """Return head and loss, in chunks, forward and backward."""
    chunks = float(np.ceil(c.sequence / LOSS_CHUNK))
    logits = c.tokens * c.vocabulary * c.item_bytes / chunks
    head = replace(step_demand.gemm("head", c, c.tokens / chunks, c.vocabulary, c.d_model), times=chunks)
    loss = replace(software.memory_bound("loss", logits, c), times=chunks)
    back = replace(software.memory_bound("loss backward", 2 * logits, c), times=chunks)
    gradient = next(step_demand.backward_of(head))
    return [head, loss], [back, gradient]

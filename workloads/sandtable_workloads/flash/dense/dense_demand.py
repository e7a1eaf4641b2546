"""What a dense model demands: for every token all of its weights, from memory or read from storage in order.

Bytes read per token are those of the layers that are not kept, and of the experts that a token is sent to; bytes
moved are those of all weights, so that with everything in memory the bandwidth of the memory bounds tokens per second.
Widening blocks of weights is part of each product; see `sandtable_kernels.operations.gemv`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from sandtable.demand.op import Op, Where
from sandtable.demand.plan import Phase, Plan, Step
from sandtable.errors import DoesNotFit
from sandtable.hardware import Machine
from sandtable_kernels.operations.activation import FfnActivation
from sandtable_workloads.flash.dense.dense_choice import DenseSetup, LayerPlace, setup_of
from sandtable_workloads.flash.dense.dense_layout import LayerMatrices, Matrix
from sandtable_workloads.flash.flash_parameters import FlashInference
from sandtable_workloads.flash.layer_ops import add_norm_op, attend_op, gemm_op, gemv_op, stream_op
from sandtable_workloads.flash.machine_memory import Room
from sandtable_workloads.transformer.shapes import ModelShape

ACTIVATION = FfnActivation()


def dense_plan(parameters: FlashInference, machine: Machine) -> Plan:
    """Return prefill and decode of a dense model.

    Raises:
        DoesNotFit: not even one layer at a time.
    """
    setup = setup_of(parameters, machine)
    context = parameters.prompt_tokens + max(1, parameters.tokens // 2)
    prompt, token = (tuple(_ops(parameters, setup, n, context)) for n in (parameters.prompt_tokens, None))
    prefill = Phase(name="prefill", steps=(Step(name="prompt", ops=prompt),))
    decode = Phase(name="decode", steps=(Step(name="token", ops=token, repeat=parameters.tokens),))
    return Plan(
        workload="flash_inference",
        phases=(prefill, decode),
        main_phase="decode",
        memory_bytes=setup.memory(),
        work_unit="token",
        sums={"ttft_s": ("prefill", "decode")},
    )


def _ops(parameters: FlashInference, setup: DenseSetup, n: int | None, context: int) -> Iterator[Op]:
    """Yield the ops of one decoded token after ``context`` others, or of a prompt of ``n`` tokens."""
    shape, before = parameters.shape, setup.places[0].on
    for place, layer in zip(setup.places, setup.layout.layers, strict=True):
        if place.on != before:
            yield _crossing(shape, n)
        before = place.on
        yield from _read(parameters, place, layer, n)
        yield from _attention(parameters, layer, place.on, n, context)
        yield add_norm_op(shape.d_model, place.on, n or 1)
        for matrix in layer.ffn:
            if matrix.role == "down":
                yield _activation(matrix, shape, place.on, n)
            yield _product(matrix, place.on, n)
        yield add_norm_op(shape.d_model, place.on, n or 1)
    if setup.head_on != before:
        yield _crossing(shape, n)
    yield _product(setup.layout.head, setup.head_on, None)


def _crossing(shape: ModelShape, n: int | None) -> Op:
    """The residual stream goes over the link from accelerator to host, or back."""
    n_bytes = 4.0 * shape.d_model * (n or 1)
    return Op(name="transfer", operator="transfer", account="memory", bytes_read=n_bytes, on="accelerator")


def _read(parameters: FlashInference, place: LayerPlace, layer: LayerMatrices, n: int | None) -> Iterator[Op]:
    if not place.keeps_attention:
        yield stream_op(parameters, "attention weights", layer.attention_bytes)
    if not place.keeps_ffn:
        yield stream_op(parameters, "feed-forward weights", sum(_needed(m, n) * m.n_bytes for m in layer.ffn))


def _needed(matrix: Matrix, n: int | None) -> float:
    """Return the share of equal matrices that ``n`` tokens are multiplied with: experts that any of them is sent to."""
    if matrix.used == matrix.count:
        return 1.0
    return 1 - (1 - matrix.used / matrix.count) ** (n or 1)


def _attention(
    parameters: FlashInference, layer: LayerMatrices, on: Where, n: int | None, context: int
) -> Iterator[Op]:
    """Projections, and attention over keys and values: one op per token of a prompt."""
    shape = parameters.shape
    *into, output = layer.attention
    yield from (_product(matrix, on, n) for matrix in into)
    for seen in [context] if n is None else range(1, n + 1):
        yield attend_op(_heads(shape), parameters.kv_dtype, on, seen)
    yield _product(output, on, n)


def _heads(shape: ModelShape) -> tuple[int, int, int]:
    """Return query heads, key-value heads and their width; latent attention reads one latent, which all heads share."""
    if shape.latent is None:
        return shape.n_heads, shape.n_kv_heads, shape.head_dim
    # keys and values are the same numbers, and the kernel counts both
    return shape.n_heads, 1, (shape.latent.kv_lora_rank + shape.latent.qk_rope_head_dim) // 2


def _product(matrix: Matrix, on: Where, n: int | None) -> Op:
    """Return the product of a matrix with a token, or with ``n``; of experts, those that the tokens are sent to."""
    if n is None:
        return _times(gemv_op(matrix.part, matrix.rows, matrix.columns, matrix.dtype, on), matrix.used)
    if matrix.used == matrix.count:
        return _times(gemm_op(matrix.part, matrix.rows, matrix.columns, n, matrix.dtype, on), matrix.used)
    touched = _needed(matrix, n) * matrix.count
    each = max(1, round(n * matrix.used / touched))
    return _times(gemm_op(matrix.part, matrix.rows, matrix.columns, each, matrix.dtype, on), round(touched))


def _times(op: Op, n: int) -> Op:
    return op if n == 1 else replace(op, repeat=n)


def _activation(down: Matrix, shape: ModelShape, on: Where, n: int | None) -> Op:
    dims = {"n": (n or 1) * down.used, "n_neurons": down.columns, "activation": shape.activation}
    return replace(ACTIVATION.cost(dims | {"gated": shape.n_vectors == 3}), on=on)


def checked(plan: Plan, parameters: FlashInference, machine: Machine) -> Plan:
    """Return the plan, if the system's part of the memory is left alone.

    Raises:
        DoesNotFit: it is not.
    """
    room = Room.of(machine, parameters.reserve_bytes)
    needed = sum(plan.memory_bytes.values())
    if needed <= room.free_bytes:
        return plan
    raise DoesNotFit(room.sentence(plan.workload, machine.name, plan.memory_bytes))

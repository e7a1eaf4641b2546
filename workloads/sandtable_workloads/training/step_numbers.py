"""The numbers of a training run, or of many runs of one structure at once: what demands and memory are counted from.

Every number may be a NumPy array with one entry per configuration: the plan that the engine runs is built from
scalars, the closed form of `sandtable_workloads.training.closed_form` from arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from operator import attrgetter
from typing import Any

import numpy as np

from sandtable.demand.operator_shapes import Number
from sandtable.hardware import DTYPE_BYTES
from sandtable_workloads.training.states import optimizers
from sandtable_workloads.training.training_parameters import SlmTraining
from sandtable_workloads.transformer.shapes import ModelShape

# bytes of an element of weights and activations, and of gradients as the optimiser reads them, master weights included
COMPUTE_DTYPE = {
    "float32": "float32",
    "bfloat16": "bfloat16",
    "mixed_bfloat16": "bfloat16",
    "mixed_float16": "float16",
    "mixed_fp8": "bfloat16",
}
CHECKPOINTING = {"none": 0, "selective": 1, "full": 2, "alternate": 3}
EVERY_SECOND = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """The numbers of a run, or of many runs of one structure (the non-numeric fields), as arrays.

    ``sharing`` processes have one device together: the ranks of a run on a CPU, which share its cores.

    ``autocast`` operators change types as PyTorch's mixed precision has it: weights and the residual stream stay in
    float32, and products are narrow.

    ``joined`` gate and up projection are one product.

    ``widened`` the device has no units for ``dtype`` and computes in float32, see `computed`.

    Of each parameter, the optimiser's step moves ``state_bytes``, keeps ``held_state_bytes`` of states and copies
    ``copied_bytes`` while it goes on; ``host_state_bytes`` are states and float32 weights, where both lie elsewhere.

    ``per_machine`` are the devices of one machine. Layers of several kinds are counted, not listed: see
    `sandtable_workloads.training.step_parts.layer_kinds`.
    """

    dtype: str
    gemm_dtype: str
    autocast: bool
    joined: bool
    widened: bool
    optimizer: str
    offload_optimizer: str
    offload_parameters: str
    flash: bool
    sharding_kind: str
    latent: tuple[int, int, int, int, int] | None
    sharing: int
    rotary: bool
    causal: bool
    n_layers: Number
    d_model: Number
    n_neurons: Number
    n_vectors: Number
    n_heads: Number
    n_kv_heads: Number
    head_dim: Number
    value_dim: Number
    vocabulary: Number
    window: Number
    n_experts: Number
    top_k: Number
    expert_neurons: Number
    shared_neurons: Number
    norms: Number
    biased: Number
    n_moe_layers: Number
    first_dense: Number
    n_windowed_layers: Number
    layer_params: Number
    moe_layer_params: Number
    outer_params: Number
    batch: Number
    sequence: Number
    accumulation: Number
    devices: Number
    tensor: Number
    pipeline: Number
    context: Number
    expert: Number
    chunks: Number
    sequence_parallel: Number
    sharding: Number
    recompute: Number
    reduce_bytes: Number
    state_bytes: Number
    held_state_bytes: Number
    host_state_bytes: Number
    copied_bytes: Number
    overlaps: Number
    pieces: Number
    behind_weights: bool
    bucket_bytes: Number
    per_machine: Number

    @property
    def data(self) -> Number:
        """Data-parallel replicas."""
        return self.devices / (self.tensor * self.pipeline * self.context)

    @property
    def tokens(self) -> Number:
        """Tokens of one micro-batch on one device."""
        return self.batch * self.sequence / self.context

    @property
    def item_bytes(self) -> float:
        """Bytes of a weight and of an activation where they are computed with."""
        return DTYPE_BYTES[self.dtype]

    def computed(self) -> Configuration:
        """Return the configuration whose time this one takes: in float32 where the device has no units for its type.

        PyTorch shifts emulated values into float32 and has no tuned kernels for them (PyTorch pull request 148322), so
        that no operator is faster than in float32; what widens operands is added by `step_demand.casts`.
        """
        return replace(self, dtype="float32", gemm_dtype="float32") if self.widened else self

    @property
    def replicas(self) -> Number:
        """Devices that hold the same weights: those that gradients are reduced over."""
        return self.data * self.context


SHARDING = {"ddp": 0, "zero_1": 1, "fsdp_grad_op": 2, "fsdp_full": 3}


def product_dtype(parameters: SlmTraining) -> str:
    """Return the element type that products run in."""
    return "fp8" if parameters.precision == "mixed_fp8" else COMPUTE_DTYPE[parameters.precision]


def configuration_of(
    parameters: SlmTraining,
    shape: ModelShape,
    per_machine: int,
    *,
    on_host: bool = False,
    widened: bool = False,
    joined: bool = False,
) -> Configuration:
    """Return the numbers of one run on machines with ``per_machine`` devices each.

    ``widened`` and ``joined`` as in `Configuration`.

    ``on_host`` its devices are processes of one CPU: they share it, and what they send to each other is copied by the
    cores that compute, so that computing hides none of it.
    """
    # one line a field: long, and nowhere to go wrong
    moe = shape.moe
    dtype = COMPUTE_DTYPE[parameters.precision]
    return Configuration(
        dtype=dtype,
        gemm_dtype=product_dtype(parameters),
        autocast=parameters.precision.startswith("mixed") and not parameters.sharding.startswith("fsdp"),
        joined=joined,
        widened=widened,
        flash=parameters.attention == "flash",
        sharding_kind="ddp" if parameters.sharding == "ddp" else "sharded",
        latent=_latent(shape),
        sharing=parameters.devices if on_host else 1,
        rotary=shape.positions == "rotary",
        causal=shape.causal,
        n_layers=shape.n_layers,
        d_model=shape.d_model,
        n_neurons=shape.n_neurons,
        n_vectors=shape.n_vectors,
        n_heads=shape.n_heads,
        n_kv_heads=shape.n_kv_heads,
        head_dim=shape.head_dim,
        value_dim=shape.value_dim,
        vocabulary=shape.vocabulary,
        window=shape.sliding_window or parameters.sequence_tokens,
        n_experts=1 if moe is None else moe.n_experts,
        top_k=1 if moe is None else moe.top_k,
        expert_neurons=1 if moe is None else moe.expert_neurons,
        shared_neurons=0 if moe is None else moe.shared_neurons,
        norms=shape.norms_per_layer,
        biased=float(shape.ffn_bias),
        n_moe_layers=shape.n_moe_layers,
        first_dense=0 if moe is None else min(moe.first_dense, shape.n_layers),
        n_windowed_layers=shape.n_windowed_layers,
        layer_params=shape.layer_params(experts=False),
        moe_layer_params=shape.layer_params(experts=True, shards=parameters.expert_parallel),
        outer_params=shape.outer_params,
        batch=parameters.micro_batch,
        sequence=parameters.sequence_tokens,
        accumulation=parameters.grad_accumulation,
        devices=parameters.devices,
        tensor=parameters.tensor_parallel,
        pipeline=parameters.pipeline_parallel,
        context=parameters.context_parallel,
        expert=parameters.expert_parallel,
        chunks=parameters.virtual_stages,
        sequence_parallel=float(parameters.sequence_parallel),
        sharding=SHARDING[parameters.sharding],
        recompute=CHECKPOINTING[parameters.checkpointing],
        reduce_bytes=parameters.reduce_bytes,
        optimizer=parameters.optimizer,
        offload_optimizer=parameters.offload_optimizer,
        offload_parameters=parameters.offload_parameters,
        state_bytes=optimizers.moved_bytes(parameters, shape),
        held_state_bytes=optimizers.held_bytes(parameters, shape),
        host_state_bytes=optimizers.held_bytes(parameters, shape) + optimizers.master_bytes(parameters),
        copied_bytes=optimizers.copied_bytes(parameters, shape),
        overlaps=float(parameters.overlap_gradients and not on_host),
        pieces=float(parameters.tensor_parallel if parameters.overlap_tensor else 1),
        behind_weights=parameters.overlap_input_gradients,
        bucket_bytes=parameters.bucket_bytes,
        per_machine=per_machine,
    )


_NUMBERS = tuple(field.name for field in fields(Configuration) if field.type == "Number")
_NUMBERS_OF = attrgetter(*_NUMBERS)
_REST_OF = attrgetter(*(field.name for field in fields(Configuration) if field.type != "Number"))


def _latent(shape: ModelShape) -> tuple[int, int, int, int, int] | None:
    found = shape.latent
    if found is None:
        return None
    ranks = (found.q_lora_rank or 0, found.kv_lora_rank)
    return (*ranks, found.qk_nope_head_dim, found.qk_rope_head_dim, found.v_head_dim)


def stacked(configurations: Sequence[Configuration]) -> Configuration:
    """Return many configurations of one structure as one, with an array per number."""
    columns = np.array([_NUMBERS_OF(c) for c in configurations], dtype=np.float64).T
    return replace(configurations[0], **dict(zip(_NUMBERS, columns.copy(), strict=True)))


def structure(configuration: Configuration) -> tuple[Any, ...]:
    """Return what configurations must share to be `stacked`."""
    found: tuple[Any, ...] = _REST_OF(configuration)
    return found

"""What fine-tuning holds: trained weights beside frozen ones, and what remains of the activations.

What is frozen gets no gradient, so that most products keep nothing for the backward pass; what remains is counted
here tensor by tensor as eager PyTorch keeps it (letters as in `sandtable_workloads.training.step_demand`; r rank of
LoRA).
The base weights may be packed into four bits, which every product widens again (QLoRA, arXiv 2305.14314, section 3).

Sources: LoRA (arXiv 2106.09685); LLaMA-Adapter (arXiv 2303.16199) and its second version (arXiv 2304.15010), as
implemented by Lightning-AI/litgpt lit_gpt/{lora,adapter,adapter_v2}.py @8641822; what bitsandbytes keeps and copies,
autograd/_functions.py and nn/modules.py of version 0.41.1.
"""

from __future__ import annotations

from sandtable.errors import PlanError
from sandtable_workloads.finetuning.finetuning_parameters import Finetuning, LoraTarget
from sandtable_workloads.training.states.optimizers import held_bytes
from sandtable_workloads.transformer.shapes import ModelShape

# LLaMA-Adapter: a prompt of so many tokens in every layer but the first ones
PROMPT_TOKENS, FIRST_PROMPTED = 10, 2
# tokens of one chunk of the loss
LOSS_CHUNK = 128
# bytes of a weight: four bits and a float32 scale per 64 of them, or a byte per scale and a float32 per 256 scales
PACKED_BYTES = {"nf4": 0.5 + 4 / 64, "nf4_dq": 0.5 + 1 / 64 + 4 / (64 * 256)}
FLOAT, ITEM = 4.0, 2.0
# layers that are whole at a time where weights are sharded: the one at work and the one fetched ahead
WHOLE_LAYERS = 2


def check(p: Finetuning, shape: ModelShape) -> None:
    """Refuse adapters that are not described here.

    Raises:
        PlanError: experts, another precision, or packed weights that are sharded.
    """
    if shape.moe is not None or shape.latent is not None:
        raise PlanError("adapters of models with experts or latent attention are not described")
    if p.precision != "bfloat16":
        raise PlanError("adapters train in pure bfloat16 here: set precision to bfloat16")
    if p.quantization != "none" and p.devices > 1:
        raise PlanError("packed weights are not sharded: set devices to 1")


# --- weights -----------------------------------------------------------------------------------------------------


def linear_widths(shape: ModelShape) -> list[tuple[float, float]]:
    """Return inputs and outputs of one layer's products: joined query, key and value; output; up (and gate); down."""
    d, heads = shape.d_model, shape.n_heads * shape.head_dim
    up = [(d, shape.n_neurons)] * (shape.n_vectors - 1)
    return [(d, shape.qkv_rows), (heads, d), *up, (shape.n_neurons, d)]


def lora_products(p: Finetuning, shape: ModelShape) -> list[tuple[float, float]]:
    """Return inputs and outputs of one layer's products with a LoRA of their own, besides the joined projection."""
    widths: dict[LoraTarget, list[tuple[float, float]]] = {
        "output": [linear_widths(shape)[1]],
        "up": linear_widths(shape)[2:-1],
        "down": [linear_widths(shape)[-1]],
    }
    targets = p.lora_targets if p.adapter == "lora" else ()
    return [width for target, found in widths.items() if target in targets for width in found]


def joined_outputs(p: Finetuning, shape: ModelShape) -> float:
    """Return the outputs of the joined projection that LoRA is added to."""
    heads = {"query": shape.n_heads, "key": shape.n_kv_heads, "value": shape.n_kv_heads}
    return float(sum(heads[target] for target in p.joined_targets) * shape.head_dim)


def trainable_params(p: Finetuning, shape: ModelShape) -> float:
    """Return the weights that are trained: LoRA's products, prompts and gates, or scales and biases too."""
    d, layers = shape.d_model, shape.n_layers
    if p.adapter == "none":
        return shape.n_params
    if p.adapter == "lora":
        # one product into all ranks of the joined projection, and one out of each
        joined = len(p.joined_targets) * d + joined_outputs(p, shape)
        return layers * p.lora_rank * (joined + sum(i + o for i, o in lora_products(p, shape)))
    prompts = max(0, layers - FIRST_PROMPTED) * (PROMPT_TOKENS * d + shape.n_heads)
    if p.adapter == "adapter":
        return prompts
    scaled = layers * sum(out for _, out in linear_widths(shape)) + shape.vocabulary
    return prompts + 2 * scaled + shape.parts["norms"]


def layer_weights(shape: ModelShape) -> float:
    """Return the weights of one layer's products."""
    return shape.attention_params + shape.ffn_params


def base_bytes(p: Finetuning, shape: ModelShape) -> float:
    """Return the bytes of the frozen weights; all products are packed, and so is the head, but not the embedding."""
    if p.quantization == "none":
        return shape.n_params * ITEM
    packed = shape.n_layers * layer_weights(shape) + _head_weights(shape)
    return packed * PACKED_BYTES[p.quantization] + (shape.n_params - packed + _tied(shape)) * ITEM


def _head_weights(shape: ModelShape) -> float:
    return float(shape.vocabulary * shape.d_model)


def _tied(shape: ModelShape) -> float:
    """The embedding that is kept besides a packed head made of it."""
    return _head_weights(shape) if shape.tied else 0.0


# --- activations -------------------------------------------------------------------------------------------------


def _one_stream_input(shape: ModelShape) -> bool:
    """Attention and FFN side by side, as in GPT-NeoX and Falcon: both norms read the same input."""
    return shape.norm == "layer" and shape.positions == "rotary"


def is_prompted(p: Finetuning) -> bool:
    """Whether layers have a prompt of their own."""
    return p.adapter in ("adapter", "adapter_v2")


def saved_per_token(p: Finetuning, shape: ModelShape, *, prompted: bool = True) -> float:
    """Return the numbers per token that a layer keeps for its backward pass, ``prompted`` with a prompt of its own."""
    d, q, n = shape.d_model, shape.n_heads * shape.head_dim, shape.n_neurons
    norms = 1 if _one_stream_input(shape) else shape.norms_per_layer
    # turned queries and keys, attention's output, and values: a view of the joined projection, or repeated for groups
    attention = 3 * q + (shape.qkv_rows if shape.n_heads == shape.n_kv_heads else q)
    activation = n if shape.n_vectors == 2 else 3 * n
    total = float(norms * d + attention + activation)
    if p.adapter == "lora":
        # a mask of bytes, what dropout left, and the product that is copied between zeros
        total += 1.5 * d * bool(p.joined_targets) + joined_outputs(p, shape)
        total += sum(1.5 * i for i, _ in lora_products(p, shape))
    if is_prompted(p) and prompted:
        total += q
    if p.adapter == "adapter_v2":
        total += _scaled_per_token(shape)
    if p.quantization != "none":
        total += _kept_inputs(shape)
    return total


def _scaled_per_token(shape: ModelShape) -> float:
    """Every product keeps its output for the gradient of its scale; norms keep what their gain multiplies."""
    outputs = sum(out for _, out in linear_widths(shape))
    return outputs + (shape.norms_per_layer * shape.d_model if shape.norm == "rms" else 0)


def _kept_inputs(shape: ModelShape) -> float:
    """Packed products keep their input, though nothing reads it; attention's output is kept anyway."""
    return min(2, shape.norms_per_layer) * shape.d_model + shape.n_neurons


def logit_bytes(p: Finetuning, shape: ModelShape) -> tuple[float, float]:
    """Return bytes per token at the start of the backward pass, and when the head's runs.

    Logits are widened to float32 when they leave the model and stay until the iteration ends; so do their logarithms
    until the loss's backward pass has run. A scaled head keeps its narrow output too.
    """
    scaled = shape.vocabulary * ITEM if p.adapter == "adapter_v2" else 0.0
    wide = shape.vocabulary * FLOAT
    return 2 * wide + scaled, wide + shape.vocabulary * ITEM + scaled


def activation_bytes(p: Finetuning, shape: ModelShape) -> float:
    """Return what the layers keep of a micro-batch; layers before the first weight that is trained keep nothing."""
    tokens = p.micro_batch * p.sequence_tokens
    if p.adapter == "adapter":
        layers = float(max(0, shape.n_layers - FIRST_PROMPTED))
        per_token = layers * saved_per_token(p, shape)
    else:
        plain = FIRST_PROMPTED if is_prompted(p) else 0
        per_token = plain * saved_per_token(p, shape, prompted=False)
        per_token += (shape.n_layers - plain) * saved_per_token(p, shape)
    ends = shape.d_model * (2 if p.quantization != "none" else 1)
    if p.checkpointing == "full":
        per_token = shape.n_layers * shape.d_model + saved_per_token(p, shape)
    return tokens * ITEM * (per_token + ends)


# --- memory ------------------------------------------------------------------------------------------------------


def memory_of(p: Finetuning, shape: ModelShape) -> dict[str, float]:
    """Return the bytes that one device holds when it holds most, by kind.

    The longest batch comes while there are no optimiser's states yet; they are counted, as they are few.
    """
    check(p, shape)
    trained = trainable_params(p, shape)
    # a gradient and two moments for each weight that is trained
    states = {"gradients": trained * ITEM, "optimizer": trained * held_bytes(p.as_training(), shape)}
    if p.sharding == "fsdp_full" and p.devices > 1:
        return _sharded_memory(p, shape, trained) | {"optimizer": states["optimizer"] / p.devices}
    weights = base_bytes(p, shape) + trained * ITEM
    tokens = p.micro_batch * p.sequence_tokens
    first, later = logit_bytes(p, shape)
    # two gradients of one chunk's logits, in float32
    chunks = 2 * min(tokens, LOSS_CHUNK * p.micro_batch) * shape.vocabulary * FLOAT
    head = 0.0 if p.quantization == "none" else widened_bytes(shape)
    at_peak = max(tokens * first + chunks, tokens * later + head)
    return {"weights": weights, **states, "activations": activation_bytes(p, shape), "loss": at_peak}


def widened_bytes(shape: ModelShape) -> float:
    """Return the largest packed matrix made wide: once as float16, once in the type that is computed with."""
    return max(_head_weights(shape), *(i * o for i, o in linear_widths(shape))) * 2 * ITEM


def _sharded_memory(p: Finetuning, shape: ModelShape, trained: float) -> dict[str, float]:
    """Return what a device holds where each layer is one flat parameter, of which each device has its share.

    A flat parameter has one gradient, frozen weights included; while micro-batches accumulate it stays whole
    (PyTorch's notes on FullyShardedDataParallel, ``use_orig_params`` and ``no_sync``). The unit around the layers has
    no weight that is trained, so no gradient, and stays whole. The longest batch comes first: its peak is where the
    first gradients meet the loss, or where the last layer's gradient meets the logits.
    """
    tokens, layer = p.micro_batch * p.sequence_tokens, shape.n_params - shape.embedding_params
    per_layer = (layer + trained) / shape.n_layers
    outer = shape.embedding_params * ITEM
    whole = p.grad_accumulation > 1
    gradients = shape.n_layers * per_layer * ITEM / (1 if whole else p.devices)
    inputs = tokens * shape.n_layers * shape.d_model * ITEM
    widest = tokens * (saved_per_token(p, shape) + sum(i for i, _ in linear_widths(shape))) * ITEM
    first, _ = logit_bytes(p, shape)
    # a flat gradient is put together from its views', and, from the second micro-batch on, added to the one before
    adding = WHOLE_LAYERS * per_layer * ITEM if whole else 0.0
    kept = gradients + adding
    at_loss, at_end = inputs + tokens * first, kept + tokens * shape.vocabulary * FLOAT + widest
    return {
        "weights": (shape.n_params + trained) * ITEM / p.devices,
        "gathered": outer + WHOLE_LAYERS * per_layer * ITEM,
        "gradients": kept if at_end >= at_loss else 0.0,
        "activations": at_loss if at_end < at_loss else at_end - kept,
    }


def decode_memory_of(p: Finetuning, shape: ModelShape) -> dict[str, float]:
    """Return what decoding one sequence of ``sequence_tokens`` holds; packing a matrix needs it twice."""
    heads = 1 if shape.n_kv_heads == 1 else shape.n_heads
    cache = 2 * shape.n_layers * heads * shape.head_dim * p.sequence_tokens * ITEM
    packing = 0.0 if p.quantization == "none" else widened_bytes(shape)
    return {"weights": base_bytes(p, shape), "cache": cache, "packing": packing}

"""Fine-tuning of a few added weights beside frozen ones, and decoding with the same software: memory and time.

What is frozen gets no gradient, so that most products keep nothing for the backward pass; what remains is counted
here tensor by tensor as eager PyTorch keeps it (letters as in `sandtable_workloads.training.step_demand`; r rank of
LoRA).
The base weights may be packed into four bits, which every product widens again (QLoRA, arXiv 2305.14314, section 3).

Sources: LoRA (arXiv 2106.09685); LLaMA-Adapter (arXiv 2303.16199) and its second version (arXiv 2304.15010), as
implemented by Lightning-AI/litgpt lit_gpt/{lora,adapter,adapter_v2}.py @8641822; what bitsandbytes keeps and copies,
autograd/_functions.py and nn/modules.py of version 0.41.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from sandtable.demand.op import BACKWARD_PASSES
from sandtable.errors import PlanError
from sandtable.hardware import Machine, Stack
from sandtable.model.cost_model import CostModel
from sandtable_workloads.training import step_demand
from sandtable_workloads.training.closed_form import Timer
from sandtable_workloads.training.step_demand import Configuration, Demand, LayerKind, Software, configuration_of
from sandtable_workloads.training.training_parameters import SlmTraining
from sandtable_workloads.transformer.shapes import ModelShape

# LLaMA-Adapter: a prompt of so many tokens in every layer but the first ones
PROMPT_TOKENS, FIRST_PROMPTED = 10, 2
# tokens of one chunk of the loss
LOSS_CHUNK = 128
# bytes of a weight: four bits and a float32 scale per 64 of them, or a byte per scale and a float32 per 256 scales
PACKED_BYTES = {"nf4": 0.5 + 4 / 64, "nf4_dq": 0.5 + 1 / 64 + 4 / (64 * 256)}
FLOAT, ITEM, MOMENTS = 4.0, 2.0, 2
# layers that are whole at a time where weights are sharded: the one at work and the one fetched ahead
WHOLE_LAYERS = 2


def check(p: SlmTraining, shape: ModelShape) -> None:
    """Refuse what is not described here.

    Raises:
        PlanError: another split than data parallel, experts, or another precision.
    """
    split = p.tensor_parallel * p.pipeline_parallel * p.context_parallel * p.expert_parallel
    if split > 1 or p.sharding not in ("ddp", "fsdp_full"):
        raise PlanError("adapters train on one device, or with sharding ddp or fsdp_full")
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


def trainable_params(p: SlmTraining, shape: ModelShape) -> float:
    """Return the weights that are trained: LoRA on queries and values, prompts and gates, or scales and biases too."""
    d, layers = shape.d_model, shape.n_layers
    if p.adapter == "none":
        return shape.n_params
    if p.adapter == "lora":
        return layers * p.lora_rank * (2 * d + _lora_outputs(shape))
    prompts = max(0, layers - FIRST_PROMPTED) * (PROMPT_TOKENS * d + shape.n_heads)
    if p.adapter == "adapter":
        return prompts
    scaled = layers * sum(out for _, out in linear_widths(shape)) + shape.vocabulary
    return prompts + 2 * scaled + shape.parts["norms"]


def _lora_outputs(shape: ModelShape) -> float:
    return (shape.n_heads + shape.n_kv_heads) * shape.head_dim


def layer_weights(shape: ModelShape) -> float:
    """Return the weights of one layer's products."""
    return shape.attention_params + shape.ffn_params


def base_bytes(p: SlmTraining, shape: ModelShape) -> float:
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


def _prompted(p: SlmTraining) -> bool:
    return p.adapter in ("adapter", "adapter_v2")


def saved_per_token(p: SlmTraining, shape: ModelShape, *, prompted: bool = True) -> float:
    """Return the numbers per token that a layer keeps for its backward pass, ``prompted`` with a prompt of its own."""
    d, q, n = shape.d_model, shape.n_heads * shape.head_dim, shape.n_neurons
    norms = 1 if _one_stream_input(shape) else shape.norms_per_layer
    # turned queries and keys, attention's output, and values: a view of the joined projection, or repeated for groups
    attention = 3 * q + (shape.qkv_rows if shape.n_heads == shape.n_kv_heads else q)
    activation = n if shape.n_vectors == 2 else 3 * n
    total = float(norms * d + attention + activation)
    if p.adapter == "lora":
        # a mask of bytes, what dropout left, and the product that is copied between zeros
        total += 1.5 * d + _lora_outputs(shape)
    if _prompted(p) and prompted:
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


def logit_bytes(p: SlmTraining, shape: ModelShape) -> tuple[float, float]:
    """Return bytes per token at the start of the backward pass, and when the head's runs.

    Logits are widened to float32 when they leave the model and stay until the iteration ends; so do their logarithms
    until the loss's backward pass has run. A scaled head keeps its narrow output too.
    """
    scaled = shape.vocabulary * ITEM if p.adapter == "adapter_v2" else 0.0
    wide = shape.vocabulary * FLOAT
    return 2 * wide + scaled, wide + shape.vocabulary * ITEM + scaled


def activation_bytes(p: SlmTraining, shape: ModelShape) -> float:
    """Return what the layers keep of a micro-batch; layers before the first weight that is trained keep nothing."""
    tokens = p.micro_batch * p.sequence_tokens
    if p.adapter == "adapter":
        layers = float(max(0, shape.n_layers - FIRST_PROMPTED))
        per_token = layers * saved_per_token(p, shape)
    else:
        plain = FIRST_PROMPTED if _prompted(p) else 0
        per_token = plain * saved_per_token(p, shape, prompted=False)
        per_token += (shape.n_layers - plain) * saved_per_token(p, shape)
    ends = shape.d_model * (2 if p.quantization != "none" else 1)
    return tokens * ITEM * (per_token + ends)


# --- memory ------------------------------------------------------------------------------------------------------


def memory_of(p: SlmTraining, shape: ModelShape) -> dict[str, float]:
    """Return the bytes that one device holds when it holds most, by kind.

    The longest batch comes while there are no optimiser's states yet; they are counted, as they are few.
    """
    check(p, shape)
    trained = trainable_params(p, shape)
    # a gradient and two moments for each weight that is trained
    states = {"gradients": trained * ITEM, "optimizer": MOMENTS * trained * ITEM}
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


def _sharded_memory(p: SlmTraining, shape: ModelShape, trained: float) -> dict[str, float]:
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


def decode_memory_of(p: SlmTraining, shape: ModelShape) -> dict[str, float]:
    """Return what decoding one sequence of ``sequence_tokens`` holds; packing a matrix needs it twice."""
    heads = 1 if shape.n_kv_heads == 1 else shape.n_heads
    cache = 2 * shape.n_layers * heads * shape.head_dim * p.sequence_tokens * ITEM
    packing = 0.0 if p.quantization == "none" else widened_bytes(shape)
    return {"weights": base_bytes(p, shape), "cache": cache, "packing": packing}


# --- demands -----------------------------------------------------------------------------------------------------


def _norm(shape: ModelShape) -> str:
    return "norm" if shape.norm == "rms" else "layer norm"


def forward(p: SlmTraining, shape: ModelShape, c: Configuration, software: Software) -> list[Demand]:
    """Return what one layer does in the forward pass."""
    wide, b = c.tokens * shape.d_model, c.item_bytes
    products = [*step_demand.attention_products(c), *step_demand.ffn_products(c, LayerKind())]
    turned = c.tokens * (shape.n_heads + shape.n_kv_heads) * shape.head_dim
    return [
        *products,
        step_demand.attention(c, LayerKind(), 1.0),
        replace(software.stream(_norm(shape), 2 * wide * b, c), times=c.norms),
        replace(software.stream("residual", 3 * wide * b, c), times=2.0),
        _activation(shape, c, software, ""),
        software.stream("rope", 2 * turned * b, c),
        *_added(p, shape, c, software, ""),
        *_widening(p, products, c, software, ""),
    ]


def _activation(shape: ModelShape, c: Configuration, software: Software, suffix: str) -> Demand:
    """Return the activation: two kernels with a gate, one without."""
    passes = shape.n_vectors if not suffix else 2 * shape.n_vectors - 1
    found = software.stream(f"activation{suffix}", c.tokens * shape.n_neurons * passes * c.item_bytes, c)
    return found if shape.n_vectors > 2 else replace(found, times=0.5)


def _added(p: SlmTraining, shape: ModelShape, c: Configuration, software: Software, suffix: str) -> list[Demand]:
    """Return what an adapter adds to one layer; without ``suffix`` forward, else backward."""
    t, b, d = c.tokens, c.item_bytes, shape.d_model
    times = 2.0 if suffix else 1.0
    if p.adapter == "lora":
        down = step_demand.gemm("lora down", c, t, 2 * p.lora_rank, d)
        up = step_demand.gemm("lora up", c, t, _lora_outputs(shape) / 2, p.lora_rank, batch=2.0)
        padded = software.stream(f"lora{suffix}", 2 * t * shape.qkv_rows * b, c)
        return [replace(down, times=times), replace(up, times=times), padded]
    found: list[Demand] = []
    if _prompted(p):
        share = max(0, shape.n_layers - FIRST_PROMPTED) / shape.n_layers
        prompt = step_demand.gemm("prompt", c, PROMPT_TOKENS, shape.qkv_rows, d)
        seen = software.stream(f"prompt{suffix}", 2 * t * shape.n_heads * shape.head_dim * b, c)
        found += [replace(prompt, times=share), replace(seen, times=share)]
    if p.adapter == "adapter_v2":
        widths = linear_widths(shape)
        scaled = software.stream(f"scaled{suffix}", 2 * t * sum(o for _, o in widths) / len(widths) * b, c)
        found.append(replace(scaled, times=float(len(widths))))
    return found


def _widening(
    p: SlmTraining, products: list[Demand], c: Configuration, software: Software, suffix: str
) -> Iterator[Demand]:
    """Yield, for each packed product, how its weights are made wide: read packed, written, read and cast."""
    if p.quantization == "none":
        return
    name = ("dequantise" if p.quantization == "nf4" else "dequantise nested") + suffix
    for product in products:
        _, n, k = product.shape[:3]
        n_bytes = n * k * (PACKED_BYTES[p.quantization] + c.item_bytes)
        yield replace(software.stream(name, n_bytes, c), times=product.times)


def backward(p: SlmTraining, shape: ModelShape, c: Configuration, software: Software) -> list[Demand]:
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
        replace(software.stream(f"{_norm(shape)} backward", 3 * wide * b, c), times=c.norms),
        replace(software.stream("residual backward", 3 * wide * b, c), times=2.0),
        _activation(shape, c, software, " backward"),
        software.stream("rope backward", 2 * turned * b, c),
        software.stream("joined backward", 2 * c.tokens * shape.qkv_rows * b, c),
        *_added(p, shape, c, software, " backward"),
        *_widening(p, products, c, software, " backward"),
        *([software.stream("gradient sum", 3 * held, c)] if every else []),
    ]


def _ends(c: Configuration, software: Software) -> tuple[list[Demand], list[Demand]]:
    """Return head and loss, in chunks, forward and backward."""
    chunks = float(np.ceil(c.sequence / LOSS_CHUNK))
    logits = c.tokens * c.vocabulary * c.item_bytes / chunks
    head = replace(step_demand.gemm("head", c, c.tokens / chunks, c.vocabulary, c.d_model), times=chunks)
    loss = replace(software.stream("loss", logits, c), times=chunks)
    back = replace(software.stream("loss backward", 2 * logits, c), times=chunks)
    gradient = next(step_demand.backward_of(head))
    return [head, loss], [back, gradient]


# --- time --------------------------------------------------------------------------------------------------------


def _overhead(stack: Stack, name: str) -> float:
    found = stack.datasheet.efficiency.get(f"host.{name}")
    return stack.datasheet.host_call_s if found is None else found.overhead_s


def _calls(stack: Stack, name: str) -> float:
    found = stack.datasheet.efficiency.get(f"host.{name}")
    return 0.0 if found is None else float(found.calls)


def _stack(machine: Machine) -> Stack:
    if machine.stack is None:
        raise PlanError(f"{machine.name!r} names no stack, whose host sets the pace of adapters: set 'stack'")
    return machine.stack


def iteration_s(p: SlmTraining, shape: ModelShape, machine: Machine) -> dict[str, float]:
    """Return the seconds of one micro-batch, forward and backward: what is longer, the host's issuing or the device.

    The loss is read by the host at the end, so that nothing hides behind the next iteration. The optimiser's step on
    a few weights, once in many iterations, is left out.
    """
    check(p, shape)
    stack = _stack(machine)
    per_machine = p.devices if machine.accelerator is None else machine.accelerator.n
    c, software = configuration_of(p, shape, per_machine), Software(stack)
    timer, layers = Timer(CostModel(machine), 1), shape.n_layers
    ends = _ends(c, software)
    ahead, back = forward(p, shape, c, software), backward(p, shape, c, software)
    again = ahead if p.checkpointing == "full" else []
    device = [float(s[0]) for s in timer.seconds([ahead, back, *ends])]
    graph, engine = (_overhead(stack, name) / stack.datasheet.host_call_s for name in ("graph", "backward"))
    host = [float(timer.issue(demands)[0]) for demands in (ahead, back, *ends)]
    views = _views(p, stack)
    listed, repeated = _list_s(p, shape, stack), len(again) > 0
    unit, network = _units(p, shape, c, timer, stack)
    one_ahead = (host[0] + views) * graph + listed
    first = max(
        layers * (one_ahead + unit) + host[2] * graph,
        layers * device[0] + device[2],
        layers * network,
    )
    second = max(
        layers * (host[1] * engine + unit + repeated * one_ahead) + host[3] * engine,
        layers * (device[1] + repeated * device[0]) + device[3],
        layers * network,
    )
    fixed = _calls(stack, "iteration") * stack.datasheet.host_call_s
    # without a graph, as for validation
    plain = max(layers * (host[0] + views + listed + unit) + host[2], layers * max(device[0], network) + device[2])
    return {"step_s": first + second + fixed, "forward_s": first, "backward_s": second, "inference_s": plain}


def _views(p: SlmTraining, stack: Stack) -> float:
    """Return the host's time for one layer's views, which launch nothing."""
    added = "lora" if p.adapter == "lora" else "prompt" if _prompted(p) else "none"
    return (_calls(stack, "layer") + _calls(stack, added)) * stack.datasheet.host_call_s


def _list_s(p: SlmTraining, shape: ModelShape, stack: Stack) -> float:
    """Return the host's time for a Python list of LoRA's outputs that each layer makes a tensor of."""
    return _overhead(stack, "list_item") * _lora_outputs(shape) if p.adapter == "lora" else 0.0


def _units(p: SlmTraining, shape: ModelShape, c: Configuration, timer: Timer, stack: Stack) -> tuple[float, float]:
    """Return what one sharded layer costs the host and the network in one direction."""
    if p.sharding != "fsdp_full" or p.devices == 1:
        return 0.0, 0.0
    gather = step_demand.collective("weights", c, "all_gather", layer_weights(shape) * ITEM, float(p.devices), 1.0)
    calls = _calls(stack, "unit") + _calls(stack, "parameter") * _parameters(p, shape)
    return calls * _overhead(stack, "graph"), float(timer.seconds([[gather]])[0][0])


def _parameters(p: SlmTraining, shape: ModelShape) -> float:
    """Return how many tensors of parameters one layer has."""
    biased = [shape.attention_bias, shape.output_bias, *[shape.ffn_bias] * shape.n_vectors]
    linear = len(linear_widths(shape)) + sum(biased)
    norms = shape.norms_per_layer * (2 if shape.norm == "layer" else 1)
    return linear + norms + (2 if p.adapter == "lora" else 0)


def token_s(p: SlmTraining, shape: ModelShape, machine: Machine) -> dict[str, float]:
    """Return the seconds of one token that is decoded alone, and of the start before the first.

    A token takes what is longer, issuing kernels or reading weights.
    """
    stack = _stack(machine)
    one = p.model_copy(update={"micro_batch": 1, "sequence_tokens": 8, "adapter": "none", "devices": 1})
    per_machine = 1 if machine.accelerator is None else machine.accelerator.n
    c = replace(configuration_of(one, shape, per_machine), sequence=1.0)
    software, timer = Software(stack), Timer(CostModel(machine), 1)
    layer, head = _token_layer(p, shape, c, software), step_demand.gemm("head", c, 1.0, c.vocabulary, c.d_model)
    device = [float(s[0]) for s in timer.seconds([layer, [head]])]
    issue = float(timer.issue(layer)[0]) + stack.datasheet.host_call_s * (1 + _calls(stack, "layer"))
    host = shape.n_layers * issue + _calls(stack, "token") * stack.datasheet.host_call_s
    token = max(host, shape.n_layers * device[0] + device[1])
    return {"token_s": token, "host_s": host, "start_s": _start_s(stack)}


def _start_s(stack: Stack) -> float:
    """Return what the first pass of a process takes longer, as libraries are loaded."""
    found = stack.datasheet.efficiency.get("host.start")
    return 0.0 if found is None else found.overhead_s


def _token_layer(p: SlmTraining, shape: ModelShape, c: Configuration, software: Software) -> list[Demand]:
    """Return one layer's work for one token, attention's scores left out of the device's: few tokens are cached."""
    d, b = shape.d_model, c.item_bytes
    products = [*step_demand.attention_products(c), *step_demand.ffn_products(c, LayerKind())]
    if p.quantization != "none":
        products = [_packed(p, product, c, software) for product in products]
    return [
        *products,
        replace(software.stream(_norm(shape), 2 * d * b, c), times=c.norms),
        replace(software.stream("residual", 3 * d * b, c), times=2.0),
        _activation(shape, c, software, ""),
        software.stream("rope", 4 * d * b, c),
        software.stream("cache", 4 * d * b, c),
    ]


def _packed(p: SlmTraining, product: Demand, c: Configuration, software: Software) -> Demand:
    """Return a product of one token with packed weights, which are read once."""
    _, n, k = product.shape[:3]
    name = "packed product" if p.quantization == "nf4" else "packed product nested"
    return replace(software.stream(name, n * k * PACKED_BYTES[p.quantization], c), times=product.times)

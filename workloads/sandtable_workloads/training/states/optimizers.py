"""What optimisers keep of each parameter, what their step moves, and which matrices they see.

Bytes are means over all parameters of a model. Sources: AdamW (arXiv 1711.05101); its states in one byte each with a
float32 scale for a block of 256 (arXiv 2110.02861, section 2; bitsandbytes' AdamW8bit, one fused kernel a tensor);
Adafactor with factored second moments and no first one (arXiv 1804.04235, algorithm 4; torch.optim.Adafactor); Lion
(arXiv 2302.06675, algorithm 2); SGD with momentum; Muon on the matrices of layers and AdamW on the rest (Jordan et al.,
"Muon: An optimizer for hidden layers in neural networks", 2024; torch.optim.Muon).
"""

from __future__ import annotations

from collections.abc import Iterator

from sandtable_workloads.training.training_parameters import SlmTraining
from sandtable_workloads.transformer.shapes import ModelShape

# a block of one-byte states, and the float32 scale that it shares
BLOCK, SCALE_BYTES = 256, 4.0
FLOAT = 4.0
# optimisers that one kernel a tensor carries out, whatever the stack does about lists of tensors
FUSED = ("adamw_8bit",)
# optimisers that treat every weight alike, so that adapters' few weights need nothing else
ELEMENTWISE = ("adamw", "adamw_8bit", "lion", "sgd")


def held_bytes(p: SlmTraining, shape: ModelShape) -> float:
    """Return the bytes of states that stay between steps, for each parameter."""
    match p.optimizer:
        case "adamw":
            return 2 * p.moment_bytes
        case "adamw_8bit":
            return 2 * (1 + SCALE_BYTES / BLOCK)
        case "adafactor":
            return FLOAT * factored_frac(shape)
        case "muon":
            return (2 - hidden_frac(shape)) * p.moment_bytes
        case "lion" | "sgd":
            return p.moment_bytes


def moved_bytes(p: SlmTraining, shape: ModelShape) -> float:
    """Return the least that a step reads and writes for each parameter.

    Each reads the gradient, and reads and writes weight and states; with mixed precision the weight is float32, and a
    narrow one is written too. Adafactor reads gradients for the means of rows and of columns first, writes the update
    in float32 and reads it twice, and reads the weights for their size.
    """
    item = 4.0 if p.precision != "bfloat16" else 2.0
    narrow = 2.0 if p.precision.startswith("mixed") else 0.0
    least = p.gradient_bytes + 2 * item + narrow + 2 * held_bytes(p, shape)
    return least + (2 * p.gradient_bytes + 3 * FLOAT + item if p.optimizer == "adafactor" else 0.0)


def master_bytes(p: SlmTraining) -> float:
    """Return the bytes of the float32 weight that mixed precision keeps of each parameter."""
    return FLOAT if p.precision.startswith("mixed") else 0.0


def copied_bytes(p: SlmTraining, shape: ModelShape) -> float:
    """Return what a step over lists of tensors makes a copy of, for each parameter.

    Roots of second moments (AdamW), updates in float32 (Adafactor), signs of the blended gradients (Lion).
    """
    match p.optimizer:
        case "adamw":
            return p.moment_bytes
        case "adafactor":
            return FLOAT
        case "lion":
            return p.gradient_bytes
        case "muon":
            return (1 - hidden_frac(shape)) * p.moment_bytes
        case "adamw_8bit" | "sgd":
            return 0.0


def hidden_frac(shape: ModelShape) -> float:
    """Return the share of parameters in matrices of layers, which Muon makes orthogonal."""
    return sum(rows * columns * count for rows, columns, count in layer_matrices(shape)) / shape.n_params


def factored_frac(shape: ModelShape) -> float:
    """Return the sums of rows and columns of all matrices, for each parameter."""
    tables = [(shape.vocabulary, shape.d_model, 1 if shape.tied else 2)]
    matrices = [*layer_matrices(shape), *tables]
    return sum((rows + columns) * count for rows, columns, count in matrices) / shape.n_params


def layer_matrices(shape: ModelShape) -> Iterator[tuple[float, float, float]]:
    """Yield rows, columns and number of the matrices of all layers."""
    d, heads, layers = shape.d_model, shape.n_heads, shape.n_layers
    for rows, columns in _attention_matrices(shape):
        yield rows, columns, layers
    yield d, heads * shape.value_dim, layers
    dense = layers - shape.n_moe_layers
    if dense:
        yield shape.n_neurons, d, dense * shape.n_vectors
    if shape.moe is not None:
        yield shape.moe.expert_neurons, d, shape.n_moe_layers * shape.moe.n_experts * shape.n_vectors
        yield shape.moe.shared_neurons, d, shape.n_moe_layers * shape.n_vectors


def _attention_matrices(shape: ModelShape) -> list[tuple[float, float]]:
    """Return rows and columns of the products before attention's core."""
    d, heads, latent = shape.d_model, shape.n_heads, shape.latent
    if latent is None:
        kv = shape.n_kv_heads
        return [(heads * shape.head_dim, d), (kv * shape.head_dim, d), (kv * shape.value_dim, d)]
    queries = heads * (latent.qk_nope_head_dim + latent.qk_rope_head_dim)
    keys = heads * (latent.qk_nope_head_dim + latent.v_head_dim)
    rank = latent.q_lora_rank
    first: list[tuple[float, float]] = [(queries, d)] if not rank else [(rank, d), (queries, rank)]
    return [*first, (latent.kv_lora_rank + latent.qk_rope_head_dim, d), (keys, latent.kv_lora_rank)]

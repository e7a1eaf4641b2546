"""Whose kernels a serving framework runs for its experts: they, not the framework, share constants.

vLLM and SGLang run Triton's kernels on one chip, on another those of TensorRT-LLM: its CUTLASS kernels, or the
generated ones that it has for data center Blackwell. The rules are read off the kernels that the source of the timings
recorded beside them (column ``kernel_source`` of ai-dynamo/aiconfigurator, systems/data/*/moe @095f58a51c4c).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

TRITON, CUTLASS, GENERATED = "triton_experts", "cutlass_experts", "trtllm_gen_experts"

# how the source's names of systems begin -> generation of their chips
_GENERATIONS = {
    "gb": "blackwell",
    "b2": "blackwell",
    "b3": "blackwell",
    "rtx_pro": "rtx",
    "h1": "hopper",
    "h2": "hopper",
}


class Choice(NamedTuple):
    """What a framework chooses by; element types as in the source."""

    framework: str
    version: str
    system: str
    dtype: str
    n_neurons: float
    n_experts: float
    n_ranks: float

    @property
    def generation(self) -> str:
        """The generation of the chip; empty for older ones, and for those of others."""
        return next((name for start, name in _GENERATIONS.items() if self.system.startswith(start)), "")


def kernels_of(choice: Choice) -> str:
    """Return whose kernels run.

    Triton's stand for others that sort tokens by expert first and launch a product, the gate and a product after it,
    and that too few devices were timed with: Marlin's for 4 bits, and those for Intel.
    """
    return FRAMEWORKS[choice.framework](choice)


def _of_trtllm(choice: Choice) -> str:
    """Its own, except for weights of 4 bits before Blackwell, and for block scales on its workstation chips."""
    if choice.dtype == "w4a16_mxfp4":
        return GENERATED if choice.generation == "blackwell" else TRITON
    return TRITON if choice.dtype == "fp8_block" and choice.generation == "rtx" else CUTLASS


def _of_vllm(choice: Choice) -> str:
    """FlashInfer brings TensorRT-LLM's, in newer versions for more than fp4."""
    if choice.dtype == "int4_wo" or (choice.version.startswith("0.14") and choice.dtype != "nvfp4"):
        return TRITON
    if choice.generation == "blackwell":
        return GENERATED
    if choice.generation == "rtx":
        return CUTLASS if choice.dtype in ("bfloat16", "fp8", "nvfp4") else TRITON
    spread = choice.dtype == "fp8_block" and choice.n_ranks > 1
    return CUTLASS if choice.generation == "hopper" and (choice.dtype == "fp8" or spread) else TRITON


def _of_sglang(choice: Choice) -> str:
    """Triton's, until Blackwell; there too for a few large experts."""
    if choice.generation == "blackwell":
        few = 16 if choice.dtype == "bfloat16" else 8
        return TRITON if choice.n_experts <= few else GENERATED
    return CUTLASS if choice.dtype == "nvfp4" else TRITON


FRAMEWORKS: dict[str, Callable[[Choice], str]] = {"trtllm": _of_trtllm, "vllm": _of_vllm, "sglang": _of_sglang}
# experts of one rank, neurons: what SGLang keeps tuned tiles for, of the sizes timed here, in 16 bits; for block scales
# it falls back to tiles of 64 x 128 (sgl-project/sglang, moe_runner/triton_utils: configs/triton_3_2_0 and
# get_default_config)
_TUNED = {"h100_sxm": {(128, 768)}}


def is_tuned(choice: Choice, *, wide: bool) -> bool:
    """Whether the tiles were tuned for such experts; ``wide``: weights are multiplied as they are, in 16 bits.

    Frameworks other than SGLang fall back to tiles that suit the number of tokens.
    """
    if choice.framework != "sglang" or not wide or kernels_of(choice) != TRITON:
        return True
    return (choice.n_experts / choice.n_ranks, choice.n_neurons) in _TUNED.get(choice.system, ())

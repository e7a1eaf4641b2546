"""Parameter counts of the presets against those that were published.

EXACT are counts of published checkpoints (the sum over the tensors, as Hugging Face shows for safetensors), or
printed in full; ROUNDED are printed in billions.
"""

from __future__ import annotations

import pytest

from sandtable_workloads.transformer import presets, shape_named

SLM = "arXiv 2410.19456 table 2"
FOUNDRY = "mosaicml/llm-foundry scripts/train/benchmarking/README.md, rows of 2048 tokens"
HUB = "checkpoint on Hugging Face"
MEGATRON = "arXiv 2104.04473 table 1"

EXACT: dict[str, tuple[int, str]] = {
    "slm_100m": (130_569_920, SLM),
    "slm_500m": (526_550_016, SLM),
    "slm_1b": (970_458_240, SLM),
    "slm_2b": (1_969_027_008, SLM),
    "opt_125m": (125_239_296, HUB),
    "opt_350m": (331_196_416, HUB),
    "opt_1_3b": (1_315_758_080, HUB),
    "opt_2_7b": (2_651_596_800, HUB),
    "opt_6_7b": (6_658_473_984, HUB),
    "opt_13b": (12_853_473_280, HUB),
    "opt_30b": (29_974_540_288, HUB),
    "opt_66b": (65_719_701_504, HUB),
    "falcon_7b": (6_921_720_704, HUB),
    "falcon_40b": (41_303_293_952, HUB),
    "falcon_180b": (179_522_565_120, HUB),
    "phi_2": (2_779_683_840, HUB),
    "llama_7b": (6_738_415_616, HUB),
    "llama_13b": (13_015_864_320, HUB),
    "llama_30b": (32_528_943_616, HUB),
    "llama_65b": (65_285_660_672, HUB),
    "llama_2_7b": (6_738_415_616, HUB),
    "llama_2_13b": (13_015_864_320, HUB),
    "llama_2_70b": (68_976_648_192, HUB),
    "llama_3_8b": (8_030_261_248, HUB),
    "llama_3_70b": (70_553_706_496, HUB),
    "llama_3_1_8b": (8_030_261_248, HUB),
    "llama_3_1_70b": (70_553_706_496, HUB),
    "llama_3_1_405b": (405_853_388_800, HUB),
    "llama_3_2_1b": (1_235_814_400, HUB),
    "llama_3_2_3b": (3_212_749_824, HUB),
    "llama_3_3_70b": (70_553_706_496, HUB),
    "codellama_34b": (33_743_970_304, HUB),
    "tinyllama_1_1b": (1_100_048_384, HUB),
    "mistral_7b": (7_241_732_096, HUB),
    "mixtral_8x7b": (46_702_792_704, HUB),
    "mixtral_8x22b": (140_620_634_112, HUB),
    "gpt_2_124m": (124_439_808, "openai-community/gpt2"),
    "gpt_2_355m": (354_823_168, "openai-community/gpt2-medium"),
    "gpt_2_774m": (774_030_080, "openai-community/gpt2-large"),
    "gpt_2_1558m": (1_557_611_200, "openai-community/gpt2-xl"),
    "mpt_125m": (125_311_488, FOUNDRY),
    "mpt_350m": (355_985_408, FOUNDRY),
    "mpt_760m": (760_470_528, FOUNDRY),
    "mpt_1b": (1_315_950_592, FOUNDRY),
    "mpt_3b": (2_651_837_440, FOUNDRY),
    "mpt_13b": (12_853_954_560, FOUNDRY),
    "mpt_30b": (29_975_214_080, FOUNDRY),
}

# billions as printed, and in how many digits
ROUNDED: dict[str, tuple[float, int, str]] = {
    "megatron_22b": (22, 0, "arXiv 2205.05198 table 3"),
    "megatron_175b": (175, 0, "arXiv 2205.05198 table 3"),
    "megatron_530b": (530, 0, "arXiv 2205.05198 table 3"),
    "megatron_1t": (1008, 0, "arXiv 2205.05198 table 3 (1T) and arXiv 2104.04473 table 1 (1008.0)"),
    "megatron_1_7b": (1.7, 1, MEGATRON),
    "megatron_3_6b": (3.6, 1, MEGATRON),
    "megatron_7_5b": (7.5, 1, MEGATRON),
    "megatron_18_4b": (18.4, 1, MEGATRON),
    "megatron_39_1b": (39.1, 1, MEGATRON),
    "megatron_76_1b": (76.1, 1, MEGATRON),
    "megatron_145_6b": (145.6, 1, MEGATRON),
    "megatron_310_1b": (310.1, 1, MEGATRON),
    "megatron_529_6b": (529.6, 1, MEGATRON),
    "megatron_1008b": (1008.0, 1, MEGATRON),
    "gpt_3_175b": (175, 0, "arXiv 2005.14165 table 2.1"),
    "opt_175b": (175, 0, "arXiv 2205.01068 table 1"),
}
# billions of parameters that a token meets, as printed
ACTIVE: dict[str, tuple[float, int, str]] = {
    "mixtral_8x7b": (13, 0, "arXiv 2401.04088 section 1"),
    "mixtral_8x22b": (39, 0, "mistral.ai/news/mixtral-8x22b"),
}


@pytest.mark.parametrize("name", EXACT)
def test_count_equals_the_checkpoint(name: str) -> None:
    assert shape_named(name).n_params == EXACT[name][0]


@pytest.mark.parametrize("name", ROUNDED)
def test_count_rounds_to_what_was_printed(name: str) -> None:
    printed, digits, _ = ROUNDED[name]
    assert round(shape_named(name).n_params / 1e9, digits) == printed


@pytest.mark.parametrize("name", ACTIVE)
def test_active_count_rounds_to_what_was_printed(name: str) -> None:
    printed, digits, _ = ACTIVE[name]
    assert round(shape_named(name).n_active_params / 1e9, digits) == printed


@pytest.mark.parametrize("n_tokens", [512, 1024, 4096, 8192, 16384, 65536])
def test_learned_positions_follow_the_sequence(n_tokens: int) -> None:
    """llm-foundry's tables print MPT-125m's count at each length: one row of 768 more per token."""
    printed = {
        512: 124_131_840,
        1024: 124_525_056,
        4096: 126_884_352,
        8192: 130_030_080,
        16384: 136_321_536,
        65536: 174_070_272,
    }
    assert shape_named("mpt_125m").with_positions(n_tokens).n_params == printed[n_tokens]


def test_the_slm_paper_s_formula() -> None:
    """P = 2 V D + L (4 D^2 + 3 D I + 2 D) + D gives all four of its models."""
    for name in ("slm_100m", "slm_500m", "slm_1b", "slm_2b"):
        s = shape_named(name)
        layer = 4 * s.d_model**2 + 3 * s.d_model * s.n_neurons + 2 * s.d_model
        assert s.n_params == 2 * s.vocabulary * s.d_model + s.n_layers * layer + s.d_model


def test_every_preset_is_held_to_a_published_count() -> None:
    made_here = {name for name in presets() if name.startswith("tiny_")} | {"opt_mini"}
    assert set(presets()) - made_here - UNCOUNTED == set(EXACT) | set(ROUNDED)


# their sources print no count beyond the one digit in the name
UNCOUNTED = {"aquila_7b", "internlm_20b", "mpt_7b", "mpt_70b", "persimmon_8b"}

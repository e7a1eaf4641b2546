"""Which rung and weights a model gets, what an answer says it rests on, and what is refused in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from sandtable import units
from sandtable.contracts import run_command
from sandtable.hardware import library
from sandtable.workload.seam import workload_named
from sandtable_workloads.flash.flash_parameters import FlashInference
from sandtable_workloads.flash.saying import caveats_of, rung_of, warnings_of

LAPTOP = library.load_machine("laptop_pcie4")
LLAMA = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
}


def parameters(**given: Any) -> FlashInference:
    return FlashInference.model_validate(given, context=units.AT_EDGE)


@pytest.mark.parametrize(
    ("given", "rung", "weights"),
    [
        ({"model": "opt_6_7b"}, "bundling", "float16"),
        ({"model": "llama_2_7b_relu"}, "bundling", "float16"),
        ({"model": "opt_6_7b", "weights": "q4_0"}, "auto", "q4_0"),
        ({"model": "llama_2_7b"}, "auto", "q4_K_M"),
        ({"model": "llama_2_7b", "weights": "f16"}, "auto", "float16"),
        ({"model": "llama_2_7b", "rung": "window"}, "window", "float16"),
        ({"model": "qwen_2_5_7b", "active": "10 %", "reuse": 0.5}, "bundling", "float16"),
        ({"model": "mixtral_8x7b"}, "auto", "q4_K_M"),
        ({"geometry": "falcon_7b", "dtype": "bfloat16", "rung": "hybrid"}, "hybrid", "bfloat16"),
    ],
)
def test_what_is_chosen(given: dict[str, Any], rung: str, weights: str) -> None:
    chosen = parameters(**given)
    assert (chosen.rung, chosen.weights) == (rung, weights)


def test_former_names_give_way_to_what_is_set_last() -> None:
    assert parameters(geometry="opt_6_7b", model="phi_2").model == "phi_2"
    assert parameters(model="opt_6_7b", geometry="phi_2").model == "phi_2"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {"model": "qwen_2_5_7b", "rung": "bundling"},
            "no published sparsity: set active and reuse of its version",
        ),
        ({"model": "qwen_2_5_7b", "active": "10 %"}, "set reuse of its version with a ReLU"),
        (
            {"model": "opt_6_7b", "rung": "window", "weights": "q4_0"},
            "reads single neurons",
        ),
        ({"model": "opt_6_7b", "rung": "naive", "weights": "q8_0"}, "take rung=hybrid"),
        ({"model": "mixtral_8x7b", "rung": "hybrid", "weights": "f16"}, "has experts, latent attention"),
        ({"model": "llama_2_7b", "layers": 33}, "layers: llama_2_7b has 32"),
        ({"model": "llama_2_7b", "context": 20}, "context must hold the prompt and the answer, 48 tokens"),
        ({"model": "llama_2_7b", "weights": "q4"}, "no weights are called 'q4'"),
        ({"model": "bert_110m"}, "is an encoder"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        parameters(**given)


def test_an_answer_says_what_it_assumes() -> None:
    (relu,) = caveats_of(parameters(model="llama_2_7b_relu"), LAPTOP)
    assert relu.startswith("assumes that llama_2_7b_relu, whose ReLU makes it sparse, needs 20 % of its neurons")
    (silu,) = caveats_of(parameters(model="llama_2_7b", rung="bundling"), LAPTOP)
    assert silu.startswith("needs a version of llama_2_7b that was trained on with a ReLU")
    assert caveats_of(parameters(model="llama_2_7b"), LAPTOP) == ()
    (dense,) = warnings_of(parameters(model="llama_2_7b"), LAPTOP)
    assert dense == "weights as q4_K_M take 4.08 GB; the model as float16 takes 13.5 GB"
    small = parameters(model="llama_2_7b", weights="f16", reserve="22 GiB")
    assert rung_of(small, LAPTOP) == "hybrid"
    (streamed,) = caveats_of(small, LAPTOP)
    assert streamed.endswith("read from storage for every token; as q8_0 they would fit")


def test_what_a_model_has_by_itself_is_no_warning() -> None:
    assert warnings_of(parameters(model="opt_6_7b"), LAPTOP) == ()
    assert warnings_of(parameters(model="opt_6_7b", active="3 %"), LAPTOP) != ()
    assert warnings_of(parameters(model="llama_2_7b", rung="bundling"), LAPTOP) != ()


def test_a_verdict_knows_what_the_system_keeps() -> None:
    workload = workload_named("flash_inference")
    fits, breaks = workload.verdicts(
        [parameters(model="llama_2_7b"), parameters(model="llama_2_70b", rung="resident")], LAPTOP
    )
    assert (fits.fits, breaks.fits, breaks.breaks) == (True, False, "feed-forward")
    assert fits.has_bytes + fits.reserve_bytes == LAPTOP.memory.datasheet.capacity_bytes
    assert workload.what_fits(parameters(model="llama_2_70b", rung="resident"), LAPTOP) == (
        "weights=q3_K_S",
        "rung=auto",
    )


# --- the newcomer's question -----------------------------------------------------------------------------------


@pytest.fixture
def config(in_tmp: Path) -> str:
    Path("my_llama").mkdir()
    Path("my_llama/config.json").write_text(json.dumps(LLAMA))
    return "my_llama/config.json"


def simulated(*settings: str) -> dict[str, Any]:
    arguments = [part for setting in settings for part in ("--set", setting)]
    ran = run_command("simulate", "flash_laptop", *arguments, "--format", "json")
    assert ran.code == 0, ran.err
    found: dict[str, Any] = json.loads(ran.out)
    return found


def test_will_this_file_run_on_my_laptop(config: str) -> None:
    answer = simulated(
        f"parameters.model={config}",
        "machine.memory.capacity=8 GiB",
        "machine.storage=samsung_990_pro_2tb",
    )
    assert answer["memory"]["feed-forward"] < 3 * 2**30
    assert "bytes_read.mean" not in answer["metrics"] or answer["metrics"]["bytes_read.mean"]["value"] == 0
    # 4.0 GB at most of 89.6 GB/s
    assert 10 < answer["metrics"]["tokens_per_s"]["value"] < 22


def test_the_same_as_half_types_is_read_from_the_drive(config: str) -> None:
    answer = simulated(f"parameters.model={config}", "parameters.weights=f16", "machine.memory.capacity=8 GiB")
    assert answer["metrics"]["bytes_read.mean"]["value"] > 7e9
    assert sum(answer["memory"].values()) < 6.2 * 2**30
    assert any("as q6_K they would fit" in warning for warning in answer["warnings"])


def test_a_given_share_makes_it_sparse(config: str) -> None:
    answer = simulated(f"parameters.geometry={config}", "parameters.active=0.1", "parameters.reuse=0.5")
    assert 0 < answer["metrics"]["hit_frac.mean"]["value"] < 1
    assert any("needs a version of my_llama" in warning for warning in answer["warnings"])


def test_a_name_on_the_hub_is_the_preset(in_tmp: Path) -> None:
    by_name, by_preset = simulated("parameters.geometry=facebook/opt-6.7b"), simulated("parameters.model=opt_6_7b")
    assert by_name["metrics"] == by_preset["metrics"]

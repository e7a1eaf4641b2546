"""What fits and what does not, as arXiv 2410.19456 and llm-foundry's benchmark saw it; which tensors decide it.

That AdamW's moments are float32 beside weights in bfloat16 was chosen with the first in view: with moments in bfloat16,
2B with DDP fits at 1024 sequences. One run is predicted to fail that did not: 2B with vanilla attention at 512.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pytest

from sandtable.hardware import Machine, library
from sandtable.studies.evaluate import estimated
from sandtable.studies.study import Study
from sandtable.workload.seam import Verdict
from sandtable_workloads.training.published.training_throughput import TrainingThroughput, candidates_of
from sandtable_workloads.training.slm_training import SlmTrainingWorkload
from sandtable_workloads.training.training_parameters import SlmTraining

WORKLOAD = SlmTrainingWorkload()
# GPU of the paper -> the cloud machine that has eight of them
MACHINES = {"A100-40": "aws_p4d_24xlarge", "A100-80": "aws_p4de_24xlarge", "H100": "aws_p5_48xlarge"}
SCHEMES = ("ddp", "fsdp_full", "fsdp_grad_op")
MODELS = ("slm_100m", "slm_500m", "slm_1b", "slm_2b")
SPLITS = ((64, 16), (32, 32), (16, 64))  # GPUs and sequences on each: 1024 in all


@lru_cache(maxsize=16)
def loaded(name: str, stack: str) -> Machine:
    return library.load_machine(name, {"stack": stack})


def machine(gpu: str) -> Machine:
    return loaded(MACHINES[gpu], "huggingface_pytorch_2_3")


def run_of(model: str, attention: str, *, n_gpus: int, batch: int, scheme: str) -> SlmTraining:
    return SlmTraining.model_validate(
        {
            "model": model,
            "sequence_tokens": 1024,
            "micro_batch": batch,
            "devices": n_gpus,
            "sharding": scheme,
            "attention": attention,
            "precision": "bfloat16",
            "optimizer_dtype": "float32",
        }
    )


def judged(model: str, attention: str, gpu: str, *, n_gpus: int, batch: int, scheme: str = "ddp") -> Verdict:
    parameters = run_of(model, attention, n_gpus=n_gpus, batch=batch, scheme=scheme)
    return WORKLOAD.verdicts([parameters], machine(gpu))[0]


@pytest.mark.parametrize("model", ["slm_1b", "slm_2b"])
@pytest.mark.parametrize("gpu", MACHINES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_scores_in_memory_keep_1024_sequences_out_everywhere(model: str, gpu: str, scheme: str) -> None:
    for n_gpus, batch in SPLITS:
        found = judged(model, "vanilla", gpu, n_gpus=n_gpus, batch=batch, scheme=scheme)
        assert not found.fits
        assert found.largest == "attention scores"


@pytest.mark.parametrize(
    ("model", "scheme"), [("slm_1b", scheme) for scheme in SCHEMES] + [("slm_2b", "fsdp_full")]
)
def test_a_fused_attention_lets_1024_sequences_in(model: str, scheme: str) -> None:
    found = judged(model, "flash", "A100-80", n_gpus=64, batch=16, scheme=scheme)
    assert found.fits
    assert found.largest == "activations"


def test_500m_with_scores_in_memory_trains_at_1024() -> None:
    assert judged("slm_500m", "vanilla", "A100-80", n_gpus=64, batch=16).fits


@pytest.mark.xfail(strict=True, reason="counted tensors and 15 % gaps need 5 % more than 80 GiB")
def test_2b_with_scores_in_memory_trains_at_512() -> None:
    assert judged("slm_2b", "vanilla", "A100-80", n_gpus=64, batch=8, scheme="fsdp_full").fits


@pytest.mark.parametrize("fragmented", [0.13, 0.18])
def test_the_pattern_hangs_on_no_exact_share_of_lost_memory(fragmented: float) -> None:
    kept = machine("A100-80")
    assert kept.stack is not None
    sheet = kept.stack.datasheet.model_copy(update={"fragmented_frac": fragmented})
    changed = kept.model_copy(update={"stack": kept.stack.model_copy(update={"datasheet": sheet})})

    def fits(model: str, attention: str, scheme: str, batch: int) -> bool:
        parameters = run_of(model, attention, n_gpus=64, batch=batch, scheme=scheme)
        return WORKLOAD.verdicts([parameters], changed)[0].fits

    assert not fits("slm_2b", "flash", "ddp", 16)
    assert fits("slm_2b", "flash", "ddp", 8)
    assert fits("slm_2b", "flash", "fsdp_full", 16)
    assert not fits("slm_1b", "vanilla", "fsdp_full", 16)
    assert fits("slm_1b", "flash", "ddp", 16)
    assert fits("slm_500m", "vanilla", "ddp", 16)


def test_2b_unsharded_trains_at_512_and_sharded_at_1024() -> None:
    assert judged("slm_2b", "flash", "A100-80", n_gpus=64, batch=8, scheme="ddp").fits
    assert judged("slm_2b", "flash", "A100-80", n_gpus=64, batch=16, scheme="fsdp_full").fits
    assert judged("slm_2b", "flash", "A100-80", n_gpus=64, batch=16, scheme="fsdp_grad_op").fits


def test_2b_unsharded_does_not_train_at_1024() -> None:
    assert not judged("slm_2b", "flash", "A100-80", n_gpus=64, batch=16, scheme="ddp").fits


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("gpu", MACHINES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_128_sequences_a_gpu_never_fit(model: str, gpu: str, scheme: str) -> None:
    assert not judged(model, "flash", gpu, n_gpus=8, batch=128, scheme=scheme).fits


def test_of_100m_it_is_the_logits_that_keep_128_sequences_out() -> None:
    assert judged("slm_100m", "flash", "H100", n_gpus=8, batch=128).largest == "logits and loss"


def test_2b_trains_on_one_gpu_of_40_gb() -> None:
    assert judged("slm_2b", "flash", "A100-40", n_gpus=1, batch=4).fits


def test_every_run_of_llm_foundry_fits(reference_folder: Path) -> None:
    if not (reference_folder / "training_throughput.csv").is_file():
        pytest.skip("training_throughput.csv is not among the published measurements here")
    n_fit = 0
    for row in TrainingThroughput().read(reference_folder):
        candidates = candidates_of(row) if row.text("source_group") == "llm-foundry" else None
        if not isinstance(candidates, Study):
            continue
        found = estimated(candidates.model_copy(update={"fits": True}))
        assert found.runs.all(), f"line {row.line}: {found.nearest}"
        n_fit += 1
    assert n_fit >= 90

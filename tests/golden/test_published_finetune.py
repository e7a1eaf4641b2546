"""How well memory and time of Lit-GPT's fine-tuning are predicted; needs the folder of published measurements."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandtable.published import scoring
from sandtable.published.rows import Row
from sandtable_workloads.finetuning.published.finetune_litgpt import (
    ANCHORS,
    FinetuneLitgpt,
    does_not_fit,
    log_spread,
    padded_tokens,
)


@pytest.fixture(scope="module")
def adapter() -> FinetuneLitgpt:
    return FinetuneLitgpt()


@pytest.fixture
def folder(reference_folder: Path) -> Path:
    if not (reference_folder / "finetune_litgpt.csv").is_file():
        pytest.skip("finetune_litgpt.csv is not among the published measurements here")
    return reference_folder


def test_verdicts_on_memory(adapter: FinetuneLitgpt, folder: Path) -> None:
    rows = [row for row in adapter.read(folder) if row.text("outcome") in ("ok", "OOM")]
    wrong = [row.line for row in rows if does_not_fit(row) != (row.text("outcome") == "OOM")]
    assert len(rows) > 20
    assert not wrong


def test_anchors_come_true_and_are_not_scored(adapter: FinetuneLitgpt, folder: Path) -> None:
    scores = {score.metric: score for score in scoring.score(adapter, folder)}
    for metric in ANCHORS.values():
        assert scores[metric].skipped["an anchor: the stack is made from this cell"] == 1


def row(**cells: str) -> Row:
    known = {
        "task": "finetune LoRA",
        "model": "Llama-2 13B",
        "quantization": "none",
        "gpu": "A100-SXM4-40GB",
        "gpu_count": "1",
        "micro_batch_seqs": "1",
        "global_batch_seqs": "128",
        "max_gpu_memory_gb": "38",
        "time_per_1k_iterations_min": "3",
        "decode_tokens_per_s": "",
        "outcome": "ok",
    }
    return Row(line=2, cells=known | cells)


@pytest.mark.parametrize(
    "model", ["phi-1.5", "Pythia 6.9B", "Llama-2 7B", "Falcon 7B", "Falcon 40B", "CodeLlama 34B"]
)
def test_models_of_the_source_have_shapes(adapter: FinetuneLitgpt, model: str) -> None:
    outcome = adapter.predict(row(model=model))
    assert isinstance(outcome, list)
    assert len(outcome) == 2


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({"outcome": "OOM"}, "out of memory"),
        ({"gpu": "A10G"}, "no machine"),
        ({"quantization": "gptq.int4"}, "packed in another way"),
        ({"task": "finetune full"}, "another kind"),
        ({"model": "Unheard-of 3B"}, "Unheard"),
    ],
)
def test_reasons(adapter: FinetuneLitgpt, cells: dict[str, str], reason: str) -> None:
    outcome = adapter.predict(row(**cells))
    assert reason in getattr(outcome, "reason", "")


def test_lengths_have_the_mean_and_the_longest_of_the_data() -> None:
    mean, spread = padded_tokens(1034, 1), log_spread(123, 1034)
    assert mean == pytest.approx(540 / 4.4, rel=0.01)
    assert 0.5 < spread < 0.7
    lengths = [padded_tokens(1034, n) for n in (1, 2, 4, 8, 1000)]
    assert lengths == sorted(lengths)
    assert lengths[-1] < 1034

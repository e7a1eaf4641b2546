"""A campaign that a user writes down is answered in a few lines: how long, how much, and what bounds it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sandtable.contracts import run_command
from sandtable.hardware import Machine, library
from sandtable_workloads.training import layout

CAMPAIGN = """
schema: 1
name: my_rlhf
title: How long will this RLHF run take, and what does it cost?
workload: rlhf
machine: dgx_a100_80gb
parameters:
  model: meta-llama/Llama-2-7b-hf
  reference: soup
  devices: 8
  sharding: fsdp_full
  checkpointing: full
  total_prompts: 20000
  rollout_batch: 512
  answer_tokens: 256
  ppo_epochs: 4
  sft_samples: 20000
"""


@pytest.fixture
def file(in_tmp: Path) -> str:
    path = in_tmp / "my_rlhf.yaml"
    path.write_text(CAMPAIGN)
    return str(path)


def test_a_campaign_is_answered_in_eight_lines_of_80_columns(file: str) -> None:
    lines = run_command("simulate", file).out.rstrip().splitlines()
    assert len(lines) <= 8
    assert all(len(line) <= 80 for line in lines)
    answer = " ".join(lines)
    assert "campaign" in answer
    assert "90 %:" in answer
    assert "USD" in answer
    assert "Bound by" in answer


@pytest.mark.parametrize(
    ("own", "theirs"),
    [
        ("model", "model_name_or_path"),
        ("total_prompts", "total_episodes"),
        ("rollout_batch", "rollout_batch_size"),
        ("answer_tokens", "response_length"),
        ("ppo_epochs", "num_ppo_epochs"),
        ("devices", "actor_num_gpus_per_node"),
    ],
)
def test_other_peoples_names_lead_to_the_parameters(own: str, theirs: str, in_tmp: Path) -> None:
    (in_tmp / "theirs.yaml").write_text(CAMPAIGN.replace(f"  {own}:", f"  {theirs}:"))
    found = run_command("simulate", "theirs.yaml")
    assert found.code == 2
    assert theirs in found.error
    assert own in found.error


def test_what_does_not_fit_is_answered_with_what_would(file: str) -> None:
    found = run_command("simulate", file, "--set", "parameters.devices=1", "--set", "parameters.sharding=ddp")
    assert found.code == 5
    assert "No: it needs" in found.out
    assert "would fit: devices=8, sharding=fsdp_full" in " ".join(found.out.split())


def test_a_change_tells_what_the_whole_takes(file: str) -> None:
    said = " ".join(run_command("whatif", file, "--set", "parameters.reference=sft").out.split())
    assert "The whole takes 0." in said
    assert "PPO against the soup of 2 → PPO against the SFT model, 40 x 512 samples" in said
    assert re.search(r"[\d.]+ USD to [\d.]+ USD", said)


def test_what_the_soup_adds_is_part_of_the_answer(file: str) -> None:
    with_soup = run_command("simulate", file).out
    assert re.search(r"The soup adds [\d.]+ USD\.", with_soup)
    assert "soup adds" not in run_command("simulate", file, "--set", "parameters.reference=sft").out


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("train_batch: 2048", "my_rlhf.yaml:18: parameters.train_batch 2048 is more than the rollout_batch 512"),
        ("n_sft: 1", "my_rlhf.yaml:18: parameters.n_sft 1 gives no soup"),
        ("generation_devices: 4", "my_rlhf.yaml:18: parameters.placement colocated with generation_devices 4"),
        ("quantization: nf4", "my_rlhf.yaml:18: parameters: packed weights cannot be trained"),
    ],
)
def test_choices_that_do_not_go_together_are_shown_at_their_line(line: str, said: str, in_tmp: Path) -> None:
    (in_tmp / "my_rlhf.yaml").write_text(f"{CAMPAIGN}  {line}\n")
    found = run_command("simulate", "my_rlhf.yaml")
    assert found.code == 2
    assert said in found.error


def test_devices_for_a_deadline_are_found(file: str) -> None:
    found = run_command("cheapest", file, "--machines", "dgx_a100_80gb", "--within", "20 h", "--most-devices", "16")
    assert found.code == 0
    assert found.out.startswith("Cheapest way within 20 h to PPO of llama_2_7b")
    assert "parameters.devices=" in found.out
    refused = run_command("cheapest", file, "--until", "prompts=5")
    assert refused.code == 2
    assert "set those instead of --until" in refused.error


def test_a_host_that_never_timed_pytorch_is_told_what_does(machine: Machine) -> None:
    measured = machine.model_copy(update={"environment": {"cpu": "some"}})
    assert measured.processor.fitted is not None
    assert "calibrate --only training" in layout.never_timed(measured)[0]
    timed = measured.processor.fitted.model_copy(update={"operators": {"gemm": {}}})
    processor = measured.processor.model_copy(update={"fitted": timed})
    accelerated = library.load_machine("dgx_a100_80gb")
    for known in (measured.model_copy(update={"processor": processor}), machine, accelerated):
        assert layout.never_timed(known) == ()

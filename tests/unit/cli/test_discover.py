"""What a newcomer finds without reading code: names, parameters, models, files, and what a mistake may mean."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sandtable import api, yaml_files
from sandtable.cli import skeletons
from sandtable.cli.pipes import Patient
from sandtable.contracts import run_command
from sandtable.errors import ConfigError, NoDevice, did_you_mean
from sandtable.hardware import Storage, library
from sandtable.report import described, listing
from sandtable.runs import measure
from sandtable.workload import scenarios
from sandtable.workload.seam import workload_named, workloads

DRIVE = """\
kind: storage
name: my_drive
title: My drive
datasheet: {interface: NVMe, capacity: 1 TB, sequential_read: 3 GB/s}
sources: {datasheet: a data sheet}
"""
MACHINE = """\
kind: machine
name: box
title: Box
processor: amd_epyc_9654
memory: ddr5_4800_12ch_384gib
storage: ./my_drive.yaml
"""


def failed(*arguments: str) -> str:
    ran = run_command(*arguments)
    assert ran.code == 2, ran.err
    assert "Traceback" not in ran.err
    return ran.error


# --- show, list, new -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(workloads()))
def test_every_parameter_of_a_workload_has_type_default_and_meaning(name: str) -> None:
    table = described.workload_table(workload_named(name))
    assert {row["parameter"] for row in table.records()} == set(yaml_files.keys_of(workload_named(name).parameters))
    for row in table.records():
        assert all(row.values()), row
        assert "[" not in row["type"], row


@pytest.mark.parametrize("name", sorted(scenarios.files()))
def test_every_scenario_shows_its_parameters_and_its_machine(name: str) -> None:
    table = described.show(name)
    assert table is not None
    stated = scenarios.read(name).parameters
    here = [row["parameter"] for row in table.records() if row["here"]]
    assert len(here) == len(stated)
    text = described.text_of(table, 80)
    assert max(map(len, text.splitlines())) <= 80
    assert "machine   " in text


@pytest.mark.parametrize("name", sorted(library.device_files("stack")))
def test_every_stack_shows(name: str) -> None:
    assert listing.device_table(listing.find_device(name)).rows


def test_a_workload_a_model_and_an_offer_show_by_name() -> None:
    assert "micro_batch = 4  (whole number ≥ 1, ≤ 1048576)" in run_command("show", "slm_training").out
    shown = json.loads(run_command("show", "llama_2_7b", "--format", "json").out)
    assert {row["of the model"]: row["is"] for row in shown["rows"]}["parameters"] == "6.74B"
    assert "verda 1A100.22V (1 × NVIDIA A100 SXM4, 80 GB)" in run_command("show", "verda_1a100_22v").out
    assert "no device, scenario, workload, model or run named" in failed("show", "qqqqqq")


def test_models_are_listed_with_their_counts_smallest_first() -> None:
    rows = json.loads(run_command("list", "models", "--format", "json").out)["rows"]
    known = {row["model"]: row for row in rows}
    assert len(known) > 100
    assert (known["llama_2_7b"]["parameters"], known["llama_2_7b"]["layers"]) == ("6.74B", 32)
    assert rows[0]["parameters"].endswith("k")
    assert {
        row["name"] for row in json.loads(run_command("list", "stacks", "--format", "json").out)["rows"]
    } == set(library.device_files("stack"))


def test_a_new_scenario_works_at_once_and_explains_itself(in_tmp: Path) -> None:
    assert run_command("new", "scenario", "my_run").out == "my_run.yaml\n"
    case = scenarios.load("my_run")
    text = Path("my_run.yaml").read_text()
    assert all(key in text for key in yaml_files.keys_of(type(case.parameters)))
    ran = run_command("simulate", "my_run", "--format", "json")
    assert ran.code == 0, ran.err
    assert "did you mean" in failed("new", "scenario", "other", "--like", "slm_1b_clod")


@pytest.mark.parametrize("name", sorted(scenarios.files()))
def test_a_scenario_like_another_says_the_same(in_tmp: Path, name: str) -> None:
    path = skeletons.write("scenario", "alike", like=name)
    copy, original = scenarios.read(str(path)), scenarios.read(name)
    assert (copy.title, copy.workload, copy.machine, copy.stack) == (
        original.title,
        original.workload,
        original.machine,
        original.stack,
    )
    parameters = workload_named(copy.workload).parameters
    assert yaml_files.validate(parameters, copy.parameters, "copy") == yaml_files.validate(
        parameters, original.parameters, "original"
    )


def test_a_new_device_lies_where_the_next_command_is_given(in_tmp: Path) -> None:
    assert run_command("new", "device", "my_drive").out == "my_drive.yaml\n"
    for name in ("./my_drive.yaml", "my_drive"):
        assert run_command("show", name).code == 0


# --- what a mistake may mean -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("workload", "typed", "meant"),
    [
        ("slm_training", "batch_size", "micro_batch"),
        ("slm_training", "seq_len", "sequence_tokens"),
        ("slm_training", "lr", "learning_rate"),
        ("finetuning", "rank", "lora_rank"),
        ("flash_inference", "quantization", "weights"),
        ("flash_inference", "max_new_tokens", "tokens"),
    ],
)
def test_names_that_people_look_for_lead_to_ours(workload: str, typed: str, meant: str) -> None:
    parameters = workload_named(workload).parameters
    with pytest.raises(ConfigError, match=f"{typed}: unknown field \\(did you mean '{meant}'\\?\\)"):
        yaml_files.validate(parameters, {typed: 8}, "here")


@pytest.mark.parametrize("workload", sorted(workloads()))
def test_every_other_name_is_that_of_a_parameter(workload: str) -> None:
    parameters = workload_named(workload).parameters
    own = set(yaml_files.keys_of(parameters))
    assert set(parameters.also_called.values()) <= own
    assert not own & parameters.also_called.keys()


def test_an_unknown_parameter_says_where_all_are_listed() -> None:
    sentence = failed("simulate", "slm_100m_a100", "--set", "parameters.batch_size=8")
    assert "--set parameters.batch_size: unknown field (did you mean 'micro_batch'?)" in sentence
    assert "'sandtable show slm_training' lists all" in sentence


def test_suggestions_hold_what_was_typed() -> None:
    for typed in ("A100", "a100 80gb", "rtx4090"):
        sentence = failed("simulate", "slm_100m_a100", "--machine", typed)
        suggested = sentence.partition("did you mean ")[2].rstrip("?)").split(", ")
        assert suggested, sentence
        for name in suggested:
            assert all(word in name.replace("_", "") for word in typed.lower().split()), sentence
    assert did_you_mean("zz", [f"n{n}" for n in range(99)], "sandtable list x").endswith(
        "'sandtable list x' shows all)"
    )


# --- settings, counts, files -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value", "found"),
    [
        ("memory.capacity", "8 GiB", lambda m: m.memory.datasheet.capacity_bytes / 2**30),
        ("memory.datasheet.capacity", "8 GiB", lambda m: m.memory.datasheet.capacity_bytes / 2**30),
        ("storage.sequential_read", "8 GB/s", lambda m: m.storage.datasheet.sequential_read_bytes_per_s / 1e9),
        ("accelerator.memory.capacity", "8 GiB", lambda m: m.accelerator.memory.datasheet.capacity_bytes / 2**30),
        ("accelerator.device.tdp", "8 W", lambda m: m.accelerator.device.datasheet.tdp_w),
        ("accelerator.peak.fp8", "8 TFLOP/s", lambda m: m.accelerator.device.datasheet.peak_flops_per_s["fp8"] / 1e12),
        ("accelerator.n", 8, lambda m: m.accelerator.n),
        ("network.bandwidth", "8 GB/s", lambda m: m.network.datasheet.bandwidth_bytes_per_s / 1e9),
        ("storage", "samsung_990_pro_2tb", lambda m: 8 if m.storage.name == "samsung_990_pro_2tb" else 0),
    ],
)  # fmt: skip
def test_a_setting_leads_into_the_parts_of_a_machine(path: str, value: Any, found: Any) -> None:
    machine = library.load_machine("aws_p5_48xlarge", {path: value})
    assert found(machine) == pytest.approx(8)
    before = library.load_machine("aws_p5_48xlarge")
    assert machine != before
    assert (machine.stack, machine.price) == (before.stack, before.price)


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("machine.memory.capacity=8", "--set machine.memory.capacity: a unit is required: write it like '8 B'"),
        ("machine.memory.capacitty=8 GiB", "--set machine.memory.capacitty: unknown field"),
        ("machine.process_link.latency=1 us", "there is no process_link here: name one"),
        ("parameters.micro_batch=1,000", "--set parameters.micro_batch: Input should be a valid integer"),
        ("machine.storage=samsung_990", "--set machine.storage: no storage named 'samsung_990' (did you mean"),
    ],
)
def test_a_wrong_setting_is_named_and_not_a_file_that_is_right(setting: str, sentence: str) -> None:
    assert sentence in (said := failed("simulate", "slm_100m_a100", "--set", setting))
    assert ".yaml" not in said


@pytest.mark.parametrize(
    ("text", "value"), [("20B", 20e9), ("1.5T", 1.5e12), ("3e9", 3e9), ("19_400_000_000", 19.4e9)]
)
def test_counts_are_read_everywhere_alike(text: str, value: float) -> None:
    case = scenarios.load("slm_100m_a100", changes=scenarios.changes_of([f"parameters.total_tokens={text}"]))
    assert case.parameters.total_tokens == value  # type: ignore[attr-defined]
    case = scenarios.load("slm_100m_a100", changes=scenarios.changes_of(["parameters.steps=2k"]))
    assert case.parameters.steps == 2000  # type: ignore[attr-defined]


def test_files_are_found_beside_the_file_that_names_them(in_tmp: Path) -> None:
    folder = Path("elsewhere")
    folder.mkdir()
    (folder / "my_drive.yaml").write_text(DRIVE)
    (folder / "box.yaml").write_text(MACHINE)
    (folder / "s.yaml").write_text(
        "name: s\ntitle: S\nworkload: flash_inference\nmachine: ./box.yaml\nparameters: {model: opt_mini}\n"
    )
    assert library.load_machine("elsewhere/box.yaml").storage.name == "my_drive"
    assert scenarios.load("elsewhere/s.yaml").machine.name == "box"
    (folder / "my_drive.yaml").unlink()
    sentence = failed("simulate", "elsewhere/s.yaml")
    assert "no such file, neither beside elsewhere/box.yaml nor in the current folder" in sentence
    # what a setting names leads from where the command is given
    Path("other.yaml").write_text(DRIVE.replace("my_drive", "other"))
    machine = library.load_machine("laptop_pcie4", {"storage": "./other.yaml"})
    assert machine.storage.name == "other"


def test_one_bad_file_hides_no_other(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path("mine")
    folder.mkdir()
    (folder / "my_drive.yaml").write_text(DRIVE)
    (folder / "bad.yaml").write_text("kind: storage\nx: *y\n")
    monkeypatch.setenv(library.SEARCH_PATH_VARIABLE, "mine")
    (folder / "odd.yaml").write_text("kind: machine\nname: odd\n")
    ran = run_command("list", "devices")
    assert ran.code == 0
    assert "left out: mine/bad.yaml:2: not valid YAML" in ran.err
    assert "my_drive" in ran.out
    ran = run_command("list", "machines")
    assert ran.code == 0
    assert "left out: mine/odd.yaml: " in ran.err
    assert "laptop_pcie4" in ran.out
    assert run_command("show", "my_drive").code == 0
    assert "mine/bad.yaml:2: not valid YAML" in failed("show", "bad")
    assert isinstance(library.load_component("storage", "my_drive"), Storage)


@pytest.mark.parametrize("title", ["a\x1b[31mred", "two\nlines", "bell\x07"])
def test_a_title_steers_no_terminal(title: str) -> None:
    with pytest.raises(ConfigError, match=r"title: character U\+00.. cannot be shown"):
        yaml_files.validate(Storage, {"kind": "storage", "name": "x", "title": title, "datasheet": {}}, "here")


@pytest.mark.parametrize("text", ["< nan", "< inf tokens/s", "> 1e999"])
def test_a_threshold_is_a_number(in_tmp: Path, text: str) -> None:
    ran = run_command("simulate", "slm_100m_a100", "--set", f"thresholds.tokens_per_s={text}")
    assert ran.code == 2
    assert "thresholds.tokens_per_s" in ran.error


def test_what_costs_nothing_has_no_endless_prices(in_tmp: Path) -> None:
    ran = run_command("simulate", "slm_100m_a100", "--set", "machine.price.hour=0 USD/h", "--format", "json")
    assert ran.code == 0, ran.err
    assert "Infinity" not in ran.out
    assert "NaN" not in ran.out


# --- the process -------------------------------------------------------------------------------------------------


def test_a_reader_that_leaves_is_no_error(in_tmp: Path) -> None:
    command = [sys.executable, "-m", "sandtable", "list", "prices", "--format", "csv"]
    ran = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert ran.stdout is not None
    assert ran.stderr is not None
    ran.stdout.close()
    assert ran.stderr.read() == ""
    ran.stderr.close()
    assert ran.wait() == 0


def test_a_stream_without_a_reader_goes_quiet() -> None:
    def broken(*_: object) -> int:
        raise BrokenPipeError

    patient = Patient(SimpleNamespace(write=broken, flush=broken, encoding="utf-8"))  # type: ignore[arg-type]
    assert patient.encoding == "utf-8"
    assert patient.write("text") == 4
    assert patient.closed_by_reader
    patient.flush()


def test_what_is_missing_is_said_before_anything_is_calibrated_or_written(
    in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "find_spec", lambda _: None)
    with pytest.raises(NoDevice, match=r"needs the package 'torch': pip install -e '\.\[torch\]'"):
        api.check("slm-quick")
    assert list(Path().iterdir()) == []

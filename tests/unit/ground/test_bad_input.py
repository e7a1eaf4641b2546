"""Every kind of bad input: one sentence on stderr, the right exit code, no traceback.

Nothing on stdout either, but for an answer that was found and could not be kept: that is not lost with the run.
"""

from __future__ import annotations

import errno
import json
import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from sandtable.contracts import run_command
from sandtable.errors import DoesNotFit
from sandtable.hardware import Machine, library
from sandtable.results import Comparison
from sandtable.runs import compare, run_folder
from sandtable.workload.seam import workload_named

MINI = """\
schema: 1
name: mini
title: Mini
workload: flash_inference
repeats: 1
parameters:
  geometry: opt_mini
  tokens: 3
  cold_tokens: 2
  prompt_tokens: 3
  concurrency: 8
"""
needs_numba = pytest.mark.skipif(find_spec("numba") is None, reason="running for real needs numba")


@pytest.fixture(autouse=True)
def here(in_tmp: Path, machine: Machine) -> Path:
    """A folder with a calibrated machine and a small scenario."""
    library.save_component(machine.model_copy(update={"name": "this_machine"}), Path("this_machine.yaml"))
    Path("mini.yaml").write_text(MINI)
    return in_tmp


def fails(code: int, *arguments: str, answered: bool = False) -> str:
    """Run a command that must fail, and return its one sentence; `answered`: what it found was printed before."""
    ran = run_command(*arguments)
    assert ran.code == code, ran.err
    # that it does not fit is an answer
    refused = not answered and code == DoesNotFit.exit_code and arguments[0] in ("simulate", "run", "check")
    assert bool(ran.out) == (answered or refused), ran.out
    assert ("No: " in ran.out) == refused
    assert "Traceback" not in ran.err
    lines = ran.err.splitlines()
    assert len(lines) == 1, ran.err
    assert lines[0].startswith("sandtable: ")
    return lines[0].removeprefix("sandtable: ")


def simulate(*settings: str) -> tuple[str, ...]:
    return ("simulate", "mini.yaml", *(part for setting in settings for part in ("--set", setting)))


# --- scenario files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("repeats: 1", "repeat: 1", "bad.yaml:5: repeat: unknown field (did you mean 'repeats'?)"),
        ("  tokens: 3", "  tokns: 3", "bad.yaml:8: parameters.tokns: unknown field (did you mean 'tokens'"),
        ("  tokens: 3", "  tokens: 3\n  tokens: 4", "bad.yaml:9: duplicate key 'tokens': keep one of them"),
        (
            "  tokens: 3",
            "  stream_chunk: 8",
            "bad.yaml:8: parameters.stream_chunk: a unit is required: write it like '8 B'",
        ),
        (
            "  tokens: 3",
            "  stream_chunk: 8 Mb",
            "bad.yaml:8: parameters.stream_chunk: '8 Mb' mixes up bits and bytes",
        ),
        (
            "  tokens: 3",
            "  stream_chunk: 8 ms",
            "bad.yaml:8: parameters.stream_chunk: '8 ms' is a time, but a size",
        ),
        ("  tokens: 3", "  tokens: three", "bad.yaml:8: parameters.tokens: Input should be a valid integer"),
        ("  tokens: 3", "  tokens: 0", "bad.yaml:8: parameters.tokens: Input should be greater than or equal to 1"),
        (
            "  tokens: 3",
            "  memory_budget: -1 MiB",
            "bad.yaml:8: parameters.memory_budget: Input should be greater than 0",
        ),
        (
            "opt_mini",
            "opt_min",
            "bad.yaml:7: parameters.geometry: no model named 'opt_min' (did you mean 'opt_mini'",
        ),
        ("  tokens: 3", "  rung: windw", "bad.yaml:8: parameters.rung: Input should be 'naive', 'hybrid'"),
        (
            "flash_inference",
            "flash_inferense",
            "no workload named 'flash_inferense' (did you mean 'flash_inference'?)",
        ),
        ("schema: 1", "schema: 2", "bad.yaml:1: schema: Input should be less than or equal to 1"),
        ("title: Mini\n", "", "bad.yaml: title: this field is missing"),
        ("repeats: 1", "machine: laptop_pcie5", "no machine named 'laptop_pcie5' (did you mean 'laptop_pcie4'"),
        ("repeats: 1", "\trepeats: 1", "bad.yaml:5: not valid YAML"),
        ("parameters:", "parameters: [", "not valid YAML"),
        ("name: mini", "name: Not A Name", "bad.yaml:2: name: String should match"),
    ],
)
def test_a_fault_in_a_scenario(old: str, new: str, sentence: str) -> None:
    assert MINI.count(old) == 1
    Path("bad.yaml").write_text(MINI.replace(old, new))
    assert sentence in fails(2, "simulate", "bad.yaml")
    assert not Path("runs").exists()


@pytest.mark.parametrize("content", [b"", b"- 1\n", b"text", b"\xff\xfe\x00", b"a: *b\n", b"a: {\n"])
def test_a_file_that_is_no_scenario(content: bytes) -> None:
    Path("bad.yaml").write_bytes(content)
    assert fails(2, "simulate", "bad.yaml").startswith("bad.yaml")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("simulate", "flash_dem"), "no scenario named 'flash_dem' (did you mean 'flash_demo'"),
        (("simulate", "nothing.yaml"), "nothing.yaml: no such file"),
        (("simulate", "mini.yaml", "--machine", "nothing.yaml"), "nothing.yaml: no such file"),
        (
            ("simulate", "mini.yaml", "--machine", "laptop"),
            "no machine named 'laptop' (did you mean 'laptop_pcie4'",
        ),
        (("simulate", "mini.yaml", "--machine", "mini.yaml"), "mini.yaml: 'kind' is missing"),
        (("show", "samsung_990_pr"), "model or run named 'samsung_990_pr' (did you mean 'samsung_990_pro_1tb'"),
        (("show", "aws_i4i@5xlarge"), "no variant of aws_i4i named '5xlarge' (did you mean"),
        (("check",), "check needs scenarios, --suite NAME or --resume RUN, one of the three"),
        (
            ("check", "mini.yaml", "--suite", "flash"),
            "check needs scenarios, --suite NAME or --resume RUN, one of the three",
        ),
        (("check", "--suite", "flash-quik"), "no suite named 'flash-quik' (did you mean 'flash-quick'"),
        (("check", "--suite", "flash-quick", "--set", "parameters.tokns=1"), "parameters.tokns: unknown field"),
        (("whatif", "mini.yaml"), "whatif needs at least one --set PATH=VALUE"),
        (("report", "nothing"), "no run named 'nothing' (latest: none yet)"),
        (("show", "latest"), "no run named 'latest' (latest: none yet)"),
        (("published", "nowhere"), "nowhere: no such folder"),
        (("published", "."), "none of the expected files is here"),
        (("published", "--only", "llm_in_flash"), "no published data set named 'llm_in_flash' (did you mean"),
        (("calibrate", "--only", "storag"), "no part to calibrate named 'storag' (did you mean 'storage'"),
        (("calibrate", "--file-size", "4"), "--file-size: a unit is required: write it like '4 B'"),
        (("calibrate", "--file-size", "1 MiB"), "--file-size: at least 256 MiB"),
        (("calibrate", "--cross-check", "dd"), "--cross-check knows 'fio', not 'dd'"),
        (("calibrate", "--refit", "nothing"), "no storage named 'nothing'"),
        (("new", "device", "My Drive"), "'My Drive' cannot be a name"),
        (("new", "device", "x", "--kind", "storag", "-o", "x.yaml"), "no skeleton for a device of kind 'storag'"),
        (("new", "device", "x", "-o", "mini.yaml"), "mini.yaml: there is a file of that name already"),
    ],
)
def test_a_name_or_choice_that_is_not_there(arguments: tuple[str, ...], sentence: str) -> None:
    assert sentence in fails(2, *arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ("simulate",),
        ("simulate", "mini.yaml", "--format", "xml"),
        ("nope",),
        ("list", "cars"),
        ("simulate", "--nope"),
    ],
)
def test_usage_that_cannot_be_parsed(arguments: tuple[str, ...]) -> None:
    ran = run_command(*arguments)
    assert ran.code == 2
    assert ran.out == ""
    assert "Traceback" not in ran.err
    assert "Usage: sandtable" in ran.err
    assert "Error: " in ran.err


# --- settings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("parameters.window", "--set needs PATH=VALUE, such as parameters.window=5, not 'parameters.window'"),
        ("=5", "--set needs PATH=VALUE"),
        ("parameters.windw=5", "parameters.windw: unknown field (did you mean 'window'"),
        ("parameters.window.size=5", "parameters.window"),
        ("parameters=5", "parameters: Input should be a valid dictionary"),
        ("window=5", "window: unknown field"),
        ("name.first=5", "--set name.first: name is not a section with keys of its own"),
        ("seed=-1", "seed: Input should be greater than or equal to 0"),
        ("parameters.window=[", "--set parameters.window: '[' cannot be read as a value"),
        ("machine.storag=samsung_990_pro_2tb", "storag: unknown field (did you mean 'storage'"),
        ("machine.storage=samsung_990_pro", "no storage named 'samsung_990_pro' (did you mean 'samsung_990_pro_"),
        ("machine.memory.datasheet.capacity=64", "memory.datasheet.capacity: a unit is required"),
        ("machine=nothing", "no machine named 'nothing'"),
        ("parameters.trace=none.npz", "none.npz: no such file"),
        (
            "thresholds.latency_s.p96=< 1 s",
            "threshold on unknown metric 'latency_s.p96' (did you mean 'latency_s.p9",
        ),
    ],
)
def test_a_setting_that_cannot_be(setting: str, sentence: str) -> None:
    ran = run_command(*simulate(setting))
    assert ran.code == 2
    assert "Traceback" not in ran.err
    assert ran.error.startswith("sandtable: ")
    assert sentence in ran.error
    if not setting.startswith("thresholds"):  # those are looked at when there is a result
        assert ran.out == ""
        assert ran.err.count("\n") == 1


@pytest.mark.parametrize("text", ["< 500", "500 ms", "< 5 MB", "~ 5 s"])
def test_a_threshold_that_cannot_be_read(text: str) -> None:
    ran = run_command(*simulate(f"thresholds.latency_s.p95={text}"))
    assert ran.code == 2
    assert ran.error.startswith("sandtable: thresholds.latency_s.p95: ")


# --- machines ----------------------------------------------------------------------------------------------


def test_no_calibration_here() -> None:
    Path("this_machine.yaml").unlink()
    sentence = fails(2, "simulate", "mini.yaml")
    assert sentence.startswith("there is no this_machine.yaml here yet: run 'sandtable calibrate --quick' first")
    assert "--machine" in sentence


def test_a_fault_in_a_machine_file() -> None:
    path = Path("this_machine.yaml")
    text = path.read_text()
    line = next(number for number, row in enumerate(text.splitlines(), 1) if "first_byte:" in row)
    path.write_text(text.replace("first_byte:", "frist_byte:"))
    sentence = fails(2, "simulate", "mini.yaml")
    assert (
        f"this_machine.yaml:{line}: storage.fitted.frist_byte: unknown field (did you mean 'first_byte'" in sentence
    )


def test_a_machine_that_is_too_small() -> None:
    sentence = fails(5, *simulate("machine.memory.datasheet.capacity=10 MB"))
    assert sentence.startswith("flash_inference needs ")
    assert "this_machine has 9.54 MiB (" in sentence


@pytest.mark.parametrize(
    ("budget", "sentence"),
    [
        ("1 kB", "holds no neuron per layer"),
        ("2 MB", "rows for the neurons of one token, but its cache has a budget of"),
    ],
)
def test_a_budget_too_small_for_one_layer(budget: str, sentence: str) -> None:
    assert sentence in fails(5, *simulate(f"parameters.memory_budget={budget}"))


def test_a_machine_without_the_operation() -> None:
    text = Path("this_machine.yaml").read_text()
    assert "sparse_ffn:" in text
    Path("this_machine.yaml").write_text(text.replace("sparse_ffn:", "sparse_fnn:"))
    assert "has no fit for 'sparse_ffn' and no 'stack'" in fails(2, "simulate", "mini.yaml")


# --- files that cannot be written --------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--trace", "--report"])
def test_an_output_that_is_a_folder(option: str) -> None:
    pytest.importorskip("perfetto", reason="timelines need perfetto")
    pytest.importorskip("matplotlib", reason="reports need matplotlib")
    Path("folder").mkdir()
    ran = run_command("simulate", "mini.yaml", option, "folder")
    assert ran.code == 2
    assert "Traceback" not in ran.err
    assert ran.error == "sandtable: folder: Is a directory"
    assert list(Path("folder").iterdir()) == []


def test_runs_cannot_be_kept() -> None:
    Path("runs").write_text("in the way")
    assert "cannot make the run folder" in fails(2, "simulate", "mini.yaml", answered=True)


def test_a_full_disk_while_a_run_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(library.os, "replace", full)
    assert fails(5, "simulate", "mini.yaml", answered=True) == "No space left on device"


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))])
def test_running_out_of_memory_is_no_bug_and_no_wrong_name(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise error

    monkeypatch.setattr("sandtable.api.simulate", lambda *_, **__: full())
    ran = run_command("simulate", "mini.yaml")
    assert ran.code == 5
    assert re.match(r"sandtable: out of memory.*this process may use .*take a smaller model", ran.error)


# --- stores ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The model files of the small scenario, as they should be."""
    if find_spec("numba") is None:
        pytest.skip("running for real needs numba")
    from sandtable_workloads.flash import model_files
    from sandtable_workloads.flash.flash_parameters import FlashInference

    folder = tmp_path_factory.mktemp("written")
    model_files.open_files(FlashInference(geometry="opt_mini"), folder, lambda _: None)
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".verified"}


NEURONS, WEIGHTS = "opt_mini-float16-bundled.neurons", "opt_mini-float16.weights"


@pytest.fixture
def stores(written: dict[str, bytes]) -> Path:
    """A fresh copy of the model files."""
    folder = Path("stores")
    folder.mkdir()
    for name, content in written.items():
        (folder / name).write_bytes(content)
    assert {NEURONS, WEIGHTS} == set(written)
    return folder


def flip_bit(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 4]))


@pytest.mark.parametrize("name", [NEURONS, WEIGHTS])
@pytest.mark.parametrize("kept", [0.99, 0.5, 1e-4, 0.0])
def test_a_truncated_store(stores: Path, name: str, kept: float) -> None:
    path = stores / name
    os.truncate(path, int(kept * path.stat().st_size))
    sentence = fails(2, "run", "mini.yaml")
    assert sentence.startswith(f"stores/{name}: ")
    assert "truncated" in sentence or "not a file of weights" in sentence


@pytest.mark.parametrize("layer", [0, 2, 3])
def test_a_flipped_bit_names_the_layer(stores: Path, layer: int) -> None:
    from sandtable_kernels.files.store import NeuronStore

    path = stores / NEURONS
    start, length = NeuronStore.open(path, verify="never").layer_span(layer)
    flip_bit(path, start + length // 2)
    sentence = fails(2, "run", "mini.yaml")
    assert sentence.startswith(f"stores/{NEURONS}: layer {layer} was altered: its checksum does not match")


def test_a_flipped_bit_in_the_header(stores: Path) -> None:
    flip_bit(stores / NEURONS, 60)
    assert "the header was altered" in fails(2, "run", "mini.yaml")


def test_a_store_of_another_geometry(stores: Path) -> None:
    # the same name, but the neurons of another model: as when a file is copied by hand
    (stores / "opt_mini_2l-float16-bundled.neurons").write_bytes((stores / NEURONS).read_bytes())
    sentence = fails(2, "run", "mini.yaml", "--set", "parameters.geometry=opt_mini_2l")
    assert "opt_mini_2l-float16-bundled.neurons: has n_layers 4, 2 was asked" in sentence


def test_weights_in_the_place_of_neurons(stores: Path) -> None:
    (stores / NEURONS).write_bytes((stores / WEIGHTS).read_bytes())
    assert "holds 'blob' where 'neurons' is needed" in fails(2, "run", "mini.yaml")


@needs_numba
def test_a_store_that_is_a_file() -> None:
    Path("stores").write_text("in the way")
    assert fails(2, "run", "mini.yaml") == "stores: File exists"


@needs_numba
def test_a_disk_that_fills_up_while_a_store_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    from sandtable_kernels.files import container

    pwrite, written = os.pwrite, [0]

    def fills_up(fd: int, piece: Any, offset: int) -> int:
        written[0] += len(piece)
        if written[0] > 20 << 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(fd, piece, offset)

    monkeypatch.setattr(container.os, "pwrite", fills_up)
    sentence = fails(5, "run", "mini.yaml")
    assert f"stores/{NEURONS} needs 64 MiB of disk" in sentence
    assert "are free" in sentence
    assert list(Path("stores").iterdir()) == []


@needs_numba
def test_a_disk_that_is_full_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1 << 20))
    sentence = fails(5, "run", "mini.yaml")
    assert "stores has 1 MiB free; one layer of opt_mini needs twice" in sentence
    assert list(Path("stores").iterdir()) == []


# --- what is missing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["run", "check"])
def test_real_runs_without_numba(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "numba", None)
    sentence = fails(4, command, "mini.yaml")
    assert (
        sentence == "running for real needs the package 'numba': pip install -e '.[run]' in the folder of Sandtable"
    )


# --- interruptions -----------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, machine: Machine) -> list[int]:
    """Replace the real work by its plan's own counts; the second execution is interrupted."""
    from sandtable.engine.simulation import run
    from sandtable.model.cost_model import CostModel
    from sandtable.workload.seam import Execution

    workload, calls = workload_named("flash_inference"), [0]

    def execute(parameters: Any, hardware: Machine, seed: int, context: Any) -> Execution:
        calls[0] += 1
        if calls[0] == 2:
            raise KeyboardInterrupt
        plan = workload.plan(parameters, hardware, seed)
        return Execution(recorder=run(plan, CostModel(hardware)).recorder, memory_bytes=plan.memory_bytes)

    monkeypatch.setattr(workload, "execute", execute)
    monkeypatch.setattr(workload, "prepare", lambda *_: None)
    monkeypatch.setattr("sandtable.runs.measure.probe", lambda *_: {})
    return calls


@needs_numba
def test_an_interrupted_check_keeps_what_was_done(quick: list[int]) -> None:
    Path("other.yaml").write_text(MINI.replace("name: mini", "name: other"))
    said = fails(130, "check", "mini.yaml", "other.yaml")
    assert said.startswith("interrupted; what was finished is saved: go on with 'sandtable check --resume runs/")
    assert quick == [2]
    (base,) = run_folder.list_runs()
    comparison = base.comparison()
    assert isinstance(comparison, Comparison)
    inside = run_folder.list_runs(base.path)
    assert len(inside) == 2
    assert all(run.prediction() is not None for run in inside)  # written down before any run
    (measured,) = [run for run in inside if run.measurement() is not None]
    assert {row.scenario for row in comparison.comparisons} == {measured.path.name.rpartition("-")[2]}
    assert compare.judge(list(comparison.comparisons)).summary == comparison.summary


@needs_numba
def test_an_interrupted_run_leaves_no_half_result(quick: list[int]) -> None:
    said = fails(130, "run", "mini.yaml", "--set", "repeats=2")
    (folder,) = run_folder.list_runs()
    go_on = f"sandtable run --resume {folder.path}"
    assert said == f"interrupted; 1 of 2 repeats are saved: go on with '{go_on}'"
    kept = folder.path / "execution-1.json"
    before = kept.read_bytes()
    quick[0] = 99
    assert run_command(*go_on.split()[1:]).code == 0
    assert kept.read_bytes() == before  # not run again
    assert (folder.path / "execution-2.json").is_file()
    assert fails(2, "run", "--resume", "nothing").startswith("no run named 'nothing'")
    assert "run needs a scenario, or --resume RUN" in fails(2, "run")


@needs_numba
def test_a_damaged_repeat_is_not_resumed_from(quick: list[int]) -> None:
    fails(130, "run", "mini.yaml", "--set", "repeats=2")
    (folder,) = run_folder.list_runs()
    kept = folder.path / "execution-1.json"
    kept.write_text(kept.read_text().replace('"start_s": [', '"start_s": [1', 1))
    assert f"{kept}: does not match its digest" in fails(2, "run", "--resume", "latest")


# --- results that cannot be read ---------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["show", "report"])
def test_a_run_that_was_altered(command: str) -> None:
    assert run_command("simulate", "mini.yaml").code == 0
    path = run_folder.open_run("latest").path / "prediction.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {"schema": 9}))
    sentence = fails(2, command, "latest")
    assert f"{path}: not a prediction record: schema" in sentence


def test_a_bug_is_shown_with_its_traceback_on_request() -> None:
    ran = run_command("--debug", "simulate", "nothing.yaml")
    assert ran.code == 2
    assert "Traceback" in ran.err
    assert ran.error == "sandtable: nothing.yaml: no such file"
    assert "Traceback" not in run_command("simulate", "nothing.yaml").err

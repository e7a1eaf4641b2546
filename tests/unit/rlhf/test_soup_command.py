"""The command ``sandtable soup``: how weights are given, what it prints, and its exit codes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from checkpoint_maker import read_safetensors, write_folder

from sandtable.contracts import Ran, run_command


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, value in (("a", 1.0), ("b", 2.0), ("c", 6.0)):
        write_folder(Path(name), [{"w": ("F16", np.full(3, value, np.float16))}])
    return tmp_path


def value(output: str = "out") -> float:
    return float(read_safetensors(Path(output) / "model.safetensors")["w"][1][0])


def figures(ran: Ran) -> dict[str, object]:
    assert ran.code == 0, ran.err
    return {row["what"]: row["value"] for row in json.loads(ran.out)["rows"]}


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ((), 3.0),
        (("--weights", "0.5", "0.25", "0.25"), 2.5),
        (("--weights", "0.5,0.25,0.25"), 2.5),
        (("--weights=0.5,0.25,0.25",), 2.5),
        (("--weights", "0.5 0.25 0.25"), 2.5),
        (("--weights", "1.5", "-1", "0.5"), 2.5),
        (("--weights", "-1.5", "-1", "3.5"), 17.5),
        (("--normalize", "--weights", "2", "1", "1"), 2.5),
    ],
)
def test_weights_are_given_in_any_way(models: Path, weights: tuple[str, ...], expected: float) -> None:
    ran = run_command("soup", "a", "b", "c", "-o", "out", *weights)
    assert ran.code == 0, ran.err
    assert value() == expected


def test_a_negative_weight_is_a_difference_in_words(models: Path) -> None:
    assert "1.5 a - 0.5 b," in run_command("soup", "a", "b", "-o", "out", "--weights", "1.5", "-0.5").out


def test_models_may_come_after_weights(models: Path) -> None:
    assert run_command("soup", "-o", "out", "--weights", "0.25", "0.75", "a", "b").code == 0
    assert value() == 1.75


def test_the_answer_says_what_was_averaged_and_what_it_took(models: Path) -> None:
    ran = run_command("soup", "a", "b", "-o", "out", "--weights", "0.25", "0.75")
    lines = ran.out.splitlines()
    assert lines[0] == "What is the average of these checkpoints?"
    assert lines[1] == "  0.25 a + 0.75 b, 3 parameters in float16"
    assert lines[2].startswith("out, 4.01 KiB. 12 B read in ")
    assert len(lines) < 8
    assert run_command("soup", "a", "b", "-o", "full", "--full").out.count("\n") > 10


def test_programs_get_figures_in_base_units(models: Path) -> None:
    found = figures(run_command("soup", "a", "b", "-o", "out", "--format", "json", "--dtype", "float32"))
    assert (found["weight of a"], found["weight of b"]) == (0.5, 0.5)
    assert (found["parameters"], found["type"], found["read"], found["written"]) == (3, "float32", 12, 4096 + 12)
    assert json.loads(run_command("soup", "a", "b", "-o", "2", "--format", "json").out)["answer"]["headlines"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--weights", "0.1", "1.0"), "weights sum to 1.1, not to one, and give no average"),
        (("--weights", "half"), "--weights are numbers with commas or blanks between, not 'half'"),
        (("--memory", "much"), "--memory: 'much' is not a size"),
        (("--memory", "10 MB"), "--memory 10 MB: the program alone takes"),
        (("--dtype", "float8"), "--dtype is float32, float16, bfloat16, not 'float8'"),
        (("--greedy",), "--greedy needs --score"),
        (("--score", "true"), "--greedy needs --score"),
        (("--greedy", "--score", "true", "--weights", "1,0"), "a greedy soup is uniform"),
        (("--greedy", "--score", "true"), "--score 'true' gave no number for a: printed ''"),
        (("--greedy", "--score", "false"), "--score 'false' gave no number for a: exit code 1"),
        (("--greedy", "--score", "no-such-program-here"), "cannot be run: No such file or directory"),
        (("--greedy", "--score", "echo 'x"), "No closing quotation"),
    ],
)
def test_what_cannot_be_is_one_sentence(models: Path, options: tuple[str, ...], sentence: str) -> None:
    ran = run_command("soup", "a", "b", "-o", "out", *options)
    assert ran.code == 2
    assert sentence in ran.error
    assert not ran.out
    assert sorted(path.name for path in models.iterdir()) == ["a", "b", "c"]


def test_one_model_is_no_average(models: Path) -> None:
    assert "at least two checkpoints" in run_command("soup", "a", "-o", "out").error


SCORE = """
import json, pathlib, struct, sys
content = (pathlib.Path(sys.argv[1]) / "model.safetensors").read_bytes()
value, = struct.unpack_from("<e", content, 8 + struct.unpack_from("<Q", content)[0])
print("scored", sys.argv[1])
print(-abs(value - 1.6))
"""


@pytest.mark.parametrize("braces", [True, False])
def test_a_command_decides_which_models_stay(models: Path, braces: bool) -> None:
    Path("score.py").write_text(SCORE)
    command = f"{sys.executable} score.py{' {}' if braces else ''}"
    ran = run_command("soup", "a", "b", "c", "-o", "out", "--greedy", "--score", command, "--format", "json")
    # 2 alone is nearest to 1.6; with 1 it is 1.5, nearer; with 6 it is 3
    found = figures(ran)
    assert found["score"] == pytest.approx(-0.1, abs=1e-3)
    assert (found["weight of a"], found["weight of b"]) == (0.5, 0.5)
    assert "weight of c" not in found
    assert found["score of c"] == pytest.approx(-4.4, abs=1e-2)
    assert value() == 1.5
    assert "with c: -1.4, left out" in ran.err

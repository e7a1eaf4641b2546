"""The whole alignment on tiny models: it resumes bit by bit, stops at what is no number, and says what it doubts."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_alignment import FEW, TINY

from sandtable.errors import ConfigError, MeasureError

torch = pytest.importorskip("torch", reason="models are PyTorch's")

from sandtable_workloads.rlhf.aligned import run_alignment  # noqa: E402
from sandtable_workloads.rlhf.aligned.alignment_evaluation import win_rate  # noqa: E402
from sandtable_workloads.rlhf.aligned.alignment_pipeline import (  # noqa: E402
    Aligned,
    Arm,
    align,
    averaged,
    doubts,
    prefers,
)
from sandtable_workloads.rlhf.aligned.alignment_settings import Ppo  # noqa: E402
from sandtable_workloads.rlhf.aligned.policy_model import Policy  # noqa: E402
from sandtable_workloads.rlhf.aligned.ppo_phase import Optimisation  # noqa: E402
from sandtable_workloads.training.executed.job import checkpoints, part_path  # noqa: E402

PPO = Ppo(iterations=6, batch=8, target_kl=1.0, horizon=100.0)
ARMS = {"ppo_sft": PPO, "ppo_soup": replace(PPO, reference="soup")}
CHILD = """
import sys
from pathlib import Path
from sandtable_workloads.rlhf.aligned.alignment_pipeline import align
from sandtable_workloads.rlhf.aligned.alignment_settings import Alignment, Ppo
import json
settings, ppo, folder = sys.argv[1:]
align(Alignment.of_json(json.loads(settings)), {"ppo_sft": Ppo(**json.loads(ppo))}, Path(folder),
      lambda line: print(line, flush=True))
"""


def untimed(arm: Arm) -> list[dict[str, float]]:
    return [{k: v for k, v in each.items() if not k.endswith("_s")} for each in arm.figures]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Aligned]:
    folder = tmp_path_factory.mktemp("alignment")
    return folder, align(TINY, ARMS, folder)


def test_a_finished_alignment_is_read_and_not_done_again(found: tuple[Path, Aligned]) -> None:
    folder, first = found
    again = align(TINY, ARMS, folder)
    assert [untimed(arm) for arm in again.arms] == [untimed(arm) for arm in first.arms]
    assert [arm.figures[0]["update_s"] for arm in again.arms] == [arm.figures[0]["update_s"] for arm in first.arms]
    assert [arm.judged for arm in again.arms] == [arm.judged for arm in first.arms]
    assert again.before == first.before


def test_a_reference_of_its_own_changes_the_penalty_and_nothing_before_it(found: tuple[Path, Aligned]) -> None:
    plain, soup = (untimed(arm) for arm in found[1].arms)
    assert plain[0]["kl"] == pytest.approx(0.0, abs=1e-5)
    assert abs(soup[0]["kl"]) > 1e-4
    assert plain[0]["score"] == soup[0]["score"]
    assert plain[0]["tokens"] == soup[0]["tokens"]
    for judged in found[1].before["sft"].values():
        assert not any(judged.kl_sft)
    assert min(found[1].arms[1].judged["seen"].kl_reference) >= 0


def test_a_killed_run_resumes_to_identical_results(found: tuple[Path, Aligned], tmp_path: Path) -> None:
    import json

    arguments = [json.dumps(TINY.as_json()), json.dumps(TINY.as_json()["ppo"] | vars(PPO)), str(tmp_path)]
    child = subprocess.Popen([sys.executable, "-c", CHILD, *arguments], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    with child.stdout as lines:
        for line in lines:
            if line.startswith("ppo_sft 2 of"):
                os.kill(child.pid, signal.SIGKILL)
                break
    child.wait()
    assert max(checkpoints(tmp_path / "ppo_sft")) < PPO.iterations
    resumed = align(TINY, {"ppo_sft": PPO}, tmp_path)
    (arm,), reference = resumed.arms, found[1].arms[0]
    assert untimed(arm) == untimed(reference)
    assert arm.judged == reference.judged


def test_a_damaged_checkpoint_costs_its_steps_alone(found: tuple[Path, Aligned], tmp_path: Path) -> None:
    align(TINY, {"ppo_sft": PPO}, tmp_path)
    newest = part_path(tmp_path / "ppo_sft", PPO.iterations, 0)
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    (arm,) = align(TINY, {"ppo_sft": PPO}, tmp_path).arms
    assert untimed(arm) == untimed(found[1].arms[0])


def test_the_adaptive_coefficient_is_kept_with_the_checkpoint(found: tuple[Path, Aligned]) -> None:
    coefficients = [each["kl_coef"] for each in found[1].arms[1].figures]
    assert coefficients[0] == PPO.kl_coef
    assert len(set(coefficients)) == PPO.iterations


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = Optimisation.update

    def broken(self: Optimisation, number: int, *rest: Any) -> dict[str, float]:
        found = update(self, number, *rest)
        return found | {"policy_loss": math.nan} if number == 3 else found

    monkeypatch.setattr(Optimisation, "update", broken)
    with pytest.raises(
        MeasureError, match=r"policy_loss is no finite number in step 4; .*checkpoint, 2 steps, is in"
    ):
        align(TINY, {"ppo_sft": PPO}, tmp_path)
    assert max(checkpoints(tmp_path / "ppo_sft")) == 2


def test_gradients_that_are_no_numbers_stop_it_before_they_are_saved(tmp_path: Path) -> None:
    wild = replace(TINY, base=replace(FEW, learning_rate=math.inf))
    with pytest.raises(MeasureError, match=r"base diverged: (loss|grad_norm) is no finite number"):
        align(wild, {}, tmp_path)


def test_another_setting_does_not_go_on_from_these_checkpoints(found: tuple[Path, Aligned]) -> None:
    with pytest.raises(ConfigError, match=r'settings.json.*"seed": 4 is new.*another folder'):
        align(replace(TINY, seed=4), {}, found[0])
    with pytest.raises(ConfigError, match=r'"kl_coef": 0.3 is new'):
        align(TINY, {"ppo_sft": replace(PPO, kl_coef=0.3)}, found[0])


def test_a_reward_model_that_ranks_nothing_is_warned_of_before_ppo(tmp_path: Path) -> None:
    still = replace(TINY, reward_model=replace(FEW, learning_rate=1e-12), pairs=600, label_noise=1e9)
    said: list[str] = []
    found = align(still, {"ppo_sft": replace(PPO, iterations=2)}, tmp_path, said.append)
    assert found.accuracy["trained"] <= 0.55
    assert list(doubts(0.55))
    assert not list(doubts(0.56))
    place = next(i for i, line in enumerate(said) if line.startswith("warning: the reward model ranks"))
    assert place < next(i for i, line in enumerate(said) if line.startswith("ppo_sft"))
    assert found.warnings


def test_a_soup_lies_between_its_models() -> None:
    shape = TINY.shape(40)
    first, second = Policy(shape, 8), Policy(shape, 8)
    first.initialise(1)
    second.initialise(2)
    middle = averaged(first, second, 0.25)
    torch.testing.assert_close(
        middle.embedding.weight, 0.25 * first.embedding.weight + 0.75 * second.embedding.weight
    )
    assert middle.head.weight is middle.embedding.weight
    torch.testing.assert_close(averaged(first, second, 1.0).state_dict(), first.state_dict())


def test_preferences_follow_the_gold_score_as_far_as_noise_lets_them() -> None:
    assert prefers(0.1, 0.0, 0.99)
    assert not prefers(-0.1, 0.0, 0.0)
    share = sum(prefers(0.1, 0.1, (i + 0.5) / 1000) for i in range(1000)) / 1000
    assert share == pytest.approx(1 / (1 + math.exp(-1)), abs=0.002)


def test_ties_count_half() -> None:
    assert win_rate([1, 2, 3, 4], [1, 1, 4, 4]) == 0.5
    assert win_rate([1, 1], [0, 1]) == 0.75


@pytest.mark.parametrize(
    ("arguments", "said"), [(["--alpha", "2"], "alpha 2.0: write a share"), (["--kl", "-1"], "kl -1.0: write 0")]
)
def test_bad_numbers_are_refused_in_a_sentence(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_alignment.main([str(tmp_path), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_the_command_prints_a_table(
    found: tuple[Path, Aligned], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_alignment, "Alignment", lambda **changes: replace(TINY, **changes))
    given = [str(tmp_path), "--seed", "3", "--iterations", "2"]
    assert run_alignment.main(given) == 0
    out, err = capsys.readouterr()
    assert out.count("| sft |") == out.count("| soup |") == 2
    assert "% over PPO" in out
    assert "ppo_soup 2 of 2" in err


def test_what_cannot_begin_is_a_sentence_and_leaves_the_folder_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_alignment, "Alignment", lambda **changes: replace(TINY, **changes))
    assert run_alignment.main([str(tmp_path / "f"), "--text", str(tmp_path / "none")]) == 2
    assert "none: parameters.text: No such file or directory" in capsys.readouterr().err
    assert not (tmp_path / "f" / "settings.json").exists()
    (tmp_path / "file").write_text("")
    assert run_alignment.main([str(tmp_path / "file" / "f")]) == 2
    assert "file/f: no checkpoints can be written there" in capsys.readouterr().err

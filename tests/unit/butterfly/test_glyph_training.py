"""Training on glyphs: it learns, a killed run resumes to the same losses, and damage costs one epoch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sandtable.errors import ConfigError

torch = pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("matplotlib", reason="glyphs are drawn in its fonts")

from sandtable_workloads.butterfly.executed.glyph_records import Outcome, Settings  # noqa: E402
from sandtable_workloads.butterfly.executed.glyph_training import _groups, train  # noqa: E402
from sandtable_workloads.butterfly.networks.torch_network import build  # noqa: E402
from sandtable_workloads.training.executed.job import checkpoints, part_path  # noqa: E402

TINY = Settings(width=0.125, structure="low_rank", epochs=3, batch=16, images=128, held_out=59, learning_rate=0.2)
CHILD = """
import sys
from pathlib import Path
from sandtable_workloads.butterfly.executed.glyph_records import Settings
from sandtable_workloads.butterfly.executed.glyph_training import train
train(Settings(**eval(sys.argv[1])), Path(sys.argv[2]), lambda line: print(line, flush=True))
"""


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return train(TINY, tmp_path_factory.mktemp("unbroken"))


def learned(outcome: Outcome) -> list[tuple[float, float]]:
    """Return what does not depend on the clock."""
    return [(epoch.loss, epoch.accuracy) for epoch in outcome.epochs]


def test_the_loss_falls_and_everything_is_told(unbroken: Outcome) -> None:
    assert len(unbroken.epochs) == 3
    assert unbroken.epochs[-1].loss < unbroken.epochs[0].loss - 0.03
    assert unbroken.parameters == sum(weight.numel() for weight in build(TINY.network).parameters())
    assert unbroken.multiply_accumulates == TINY.network.multiply_accumulates()
    assert unbroken.step_s > 0
    assert Outcome.of_json(unbroken.as_json()) == unbroken


def test_a_killed_run_resumes_and_ends_bit_by_bit_the_same(tmp_path: Path, unbroken: Outcome) -> None:
    settings = {name: getattr(TINY, name) for name in TINY.__dataclass_fields__}
    command = [sys.executable, "-c", CHILD, repr(settings), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as child:
        assert child.stdout is not None
        child.stdout.readline()  # one epoch is over
        child.send_signal(signal.SIGKILL)
    done = checkpoints(tmp_path)[0]
    assert 1 <= done <= 3
    resumed = train(TINY, tmp_path)
    assert learned(resumed) == learned(unbroken)
    assert resumed.accuracy == unbroken.accuracy


def test_a_damaged_checkpoint_is_left_for_the_one_before(tmp_path: Path, unbroken: Outcome) -> None:
    train(TINY, tmp_path)
    part = part_path(tmp_path, 3, 0)
    part.write_bytes(part.read_bytes()[:-7] + b"damaged")
    told: list[str] = []
    resumed = train(TINY, tmp_path, told.append)
    assert len(told) == 1  # of three epochs, one was trained again
    assert learned(resumed) == learned(unbroken)


def test_threads_are_as_many_as_before(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    with pytest.raises(ConfigError, match="15 images are no batch of 16"):
        train(replace(TINY, images=15), tmp_path)
    train(replace(TINY, epochs=1, images=16, held_out=5), tmp_path)
    assert torch.get_num_threads() == before


def test_weights_decay_by_what_they_are_of() -> None:
    settings = replace(TINY, decay=0.5, structured_decay=0.25)
    model = build(settings.network)
    groups = {group["weight_decay"]: group["params"] for group in _groups(model, settings)}
    assert sum(len(weights) for weights in groups.values()) == len(list(model.parameters()))
    assert len(groups[0.25]) == 2 * len(settings.network.of_kind("pointwise"))  # both factors of each
    assert all(weight.dim() == 1 for weight in groups[0.0])
    # the stem, a depthwise convolution of each block, and the classes
    assert len(groups[0.5]) == 1 + len(settings.network.of_kind("depthwise")) + 1


def test_the_rate_rises_and_falls_to_nothing() -> None:
    rates = [TINY.rate_at(step) for step in range(TINY.epochs * TINY.steps_of_epoch)]
    assert max(rates) == pytest.approx(TINY.learning_rate)
    assert rates[0] == max(rates)  # of 24 steps, one is the twentieth part that rises
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.02 * TINY.learning_rate
    many = replace(TINY, epochs=20)
    assert many.rate_at(0) < many.rate_at(3) < many.rate_at(7)

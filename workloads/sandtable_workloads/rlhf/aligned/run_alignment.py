"""Align tiny models for real: ``python -m sandtable_workloads.rlhf.aligned.run_alignment FOLDER``.

Trains a base model, two fine-tuned ones and a reward model, and runs PPO with each reference that is asked for; a run
that was killed resumes. A table goes to stdout, progress to stderr.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sandtable.errors import ConfigError, SandtableError, missing_extra
from sandtable_workloads.rlhf.aligned.alignment_settings import Alignment, Ppo

if TYPE_CHECKING:
    from sandtable_workloads.rlhf.aligned.alignment_pipeline import Aligned

INTERRUPTED = 130
HEADS = ("reference", "KL coefficient", "prompts", "gold", "reward model", "KL to reference", "KL to SFT", "wins")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print the table, and return the exit code."""
    given = _parser().parse_args(arguments)
    try:
        settings, arms = Alignment(seed=given.seed, text=given.text, device=given.device), arms_of(given)
        try:
            from sandtable_workloads.rlhf.aligned.alignment_pipeline import align
        except ModuleNotFoundError as error:
            raise missing_extra(error.name or "torch", "torch") from None
        sys.stdout.write(f"{as_text(align(settings, arms, given.folder, _say))}\n")
    except SandtableError as error:
        _say(f"run_alignment: {error}")
        return error.exit_code
    except OSError as error:
        _say(f"run_alignment: {given.folder}: no checkpoints can be written there: {error.strerror}")
        return ConfigError.exit_code
    except KeyboardInterrupt:
        _say("run_alignment: interrupted; it resumes from its last checkpoints")
        return INTERRUPTED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="run_alignment", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where checkpoints go; a run in it resumes")
    parser.add_argument("--seed", type=int, default=1, help="of all chance")
    parser.add_argument("--reference", choices=("both", "sft", "soup"), default="both")
    parser.add_argument("--alpha", type=float, default=0.5, help="share of the first fine-tuned model in the soup")
    parser.add_argument("--kl", type=float, default=Ppo.kl_coef, help="coefficient of the KL penalty")
    parser.add_argument("--target-kl", type=float, help="adapt the coefficient to so many nats per answer")
    parser.add_argument("--iterations", type=int, default=Ppo.iterations, help="of PPO")
    parser.add_argument("--text", help="a text of your own; the one that ships without")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    return parser


def arms_of(given: argparse.Namespace) -> dict[str, Ppo]:
    """Return the PPOs that are asked for, by the names of their folders.

    Raises:
        ConfigError: a number that no PPO can have.
    """
    for name, fits, what in (
        ("seed", given.seed >= 0, "0 or more"),
        ("alpha", 0 <= given.alpha <= 1, "a share from 0 to 1"),
        ("kl", given.kl >= 0, "0 or more"),
        ("target-kl", given.target_kl is None or given.target_kl > 0, "more than 0"),
        ("iterations", given.iterations >= 1, "1 or more"),
    ):
        if not fits:
            raise ConfigError(f"--{name} {getattr(given, name.replace('-', '_'))}: write {what}")
    ppo = Ppo(iterations=given.iterations, kl_coef=given.kl, target_kl=given.target_kl, alpha=given.alpha)
    both = {"ppo_sft": replace(ppo, reference="sft"), "ppo_soup": replace(ppo, reference="soup")}
    return {name: arm for name, arm in both.items() if given.reference in ("both", arm.reference)}


def as_text(found: Aligned) -> str:
    """Return a table in Markdown: the policy before PPO, and each PPO on each kind of prompts."""
    from sandtable_workloads.rlhf.aligned.alignment_evaluation import win_rate

    plain = next((arm for arm in found.arms if arm.ppo.reference == "sft"), None)
    rows = []
    for kind in found.before["sft"]:
        for name, model in found.before.items():
            rows.append((f"no PPO: {name.replace('_', ' ')}", "", kind, *_figures(model[kind].means()), ""))
        for arm in found.arms:
            ours, wins = arm.judged[kind], ""
            if plain is not None and arm is not plain:
                wins = f"{win_rate(ours.gold, plain.judged[kind].gold):.1%} over PPO"
            rows.append((arm.ppo.reference, f"{arm.ppo.kl_coef:g}", kind, *_figures(ours.means()), wins))
    ranked = (
        f"reward model: {found.accuracy['trained']:.1%} of its own pairs right, {found.accuracy['held_out']:.1%} "
    )
    lines = [f"| {' | '.join(row)} |" for row in (HEADS, ("---",) * len(HEADS), *rows)]
    return "\n".join((*lines, "", f"{ranked}of others; {sum(found.seconds.values()):.0f} s in all"))


def _figures(means: dict[str, float]) -> tuple[str, ...]:
    return tuple(f"{means[name]:.3f}" for name in ("gold", "score", "kl_reference", "kl_sft"))


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())

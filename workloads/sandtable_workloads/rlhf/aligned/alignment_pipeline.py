"""The whole alignment: base model, two fine-tuned ones, reward model, soup, PPO, evaluation; phase by phase on disk.

A killed run takes up again what was under way, with identical further results. Imported only where a run executes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from statistics import fmean

import numpy as np
import torch

from sandtable.system import locks
from sandtable_kernels.pytorch.torch_pool import keep_memory
from sandtable_workloads.rlhf.aligned.alignment_evaluation import Judged, judged
from sandtable_workloads.rlhf.aligned.alignment_settings import Alignment, Fitting, Ppo
from sandtable_workloads.rlhf.aligned.cached_generation import Sampling, generate, uniforms
from sandtable_workloads.rlhf.aligned.fitted_phases import (
    Pair,
    Preferences,
    Ranking,
    Supervised,
    answered,
    order_of,
    ranked,
    windows,
)
from sandtable_workloads.rlhf.aligned.policy_model import Answered, Judge, Policy
from sandtable_workloads.rlhf.aligned.ppo_phase import Optimisation, RewardModel, Setting, frozen
from sandtable_workloads.rlhf.aligned.prompted_lines import END, Prompt, PromptedLines
from sandtable_workloads.rlhf.aligned.resumable_loop import Figures, claim, run_steps
from sandtable_workloads.training.executed.device import Device, device_of

# what chance is for, so that no two draws of a seed are the same
BASE, SFT, PAIRS, RANKED, PPO, TESTED = range(6)
N_SFT = 2
# a reward model that ranks no more of its own pairs right has learned nothing
LEAST_ACCURACY = 0.55
# settings that change no result, or that an arm has of its own
FREE = frozenset({"checkpoint_steps", "ppo"})
GENERATED_AT_ONCE = 256
# words of the prompts that policies are judged on: as they learned from, and of a kind that they never saw
KINDS = {"seen": 1, "unseen": 2}
Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What PPO begins with.

    Attributes:
        sft: The fine-tuned models; PPO begins at the first.
        judge: The reward model's network, from which a critic begins.
        reward: The same with scores of mean 0 and deviation 1 over the answers that it learned from.
        accuracy: Share of pairs that it ranks right: of those that it ``trained`` on, and ``held_out`` ones.
        warnings: What makes results less trustworthy, in sentences.
    """

    sft: Sequence[Policy]
    judge: Judge
    reward: RewardModel
    accuracy: dict[str, float]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One PPO: its hyperparameters, figures of its iterations, and its policy judged on each of `KINDS` of prompts."""

    ppo: Ppo
    figures: Sequence[Figures]
    judged: dict[str, Judged]


@dataclass(frozen=True, kw_only=True)
class Aligned:
    """What an alignment came to.

    Attributes:
        accuracy: The reward model's, see `Prepared`.
        before: The first fine-tuned model (``sft``), the second (``other_sft``) and their soup, before any PPO.
        arms: Each PPO.
        seconds: By phase.
        warnings: See `Prepared`.
    """

    accuracy: dict[str, float]
    before: dict[str, dict[str, Judged]]
    arms: Sequence[Arm]
    seconds: dict[str, float]
    warnings: Sequence[str]


def align(
    settings: Alignment, arms: Mapping[str, Ppo], folder: Path | None, progress: Progress = lambda _: None
) -> Aligned:
    """Do the whole of it, from what is in the folder on.

    Args:
        settings: All but PPO's hyperparameters.
        arms: Those, by a name that is a folder's; all begin at the same models.
        folder: Of this alignment's checkpoints and of no other's; None keeps none.
        progress: Told what goes on.

    Raises:
        MeasureError: a loss is no number any more.
        ConfigError: the text has too few lines, or the folder is of other settings.
        InUse: another process aligns in it.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(settings.n_threads)
    taken = nullcontext() if folder is None else locks.claimed(folder, "aligns models in this folder")
    try:
        with taken:
            return _aligned(settings, arms, folder, progress)
    finally:
        torch.set_num_threads(before)


def _aligned(settings: Alignment, arms: Mapping[str, Ppo], folder: Path | None, progress: Progress) -> Aligned:
    pipeline = Pipeline(settings, folder, progress)
    prepared = pipeline.prepared()
    done = [pipeline.arm(prepared, ppo, name) for name, ppo in arms.items()]
    return Aligned(
        accuracy=prepared.accuracy,
        before=pipeline.before(prepared),
        arms=done,
        seconds=pipeline.seconds,
        warnings=prepared.warnings,
    )


class Pipeline:
    """One alignment in one folder."""

    def __init__(self, settings: Alignment, folder: Path | None, progress: Progress = lambda _: None) -> None:
        keep_memory()
        self.settings, self.folder, self.progress = settings, folder, progress
        self.device: Device = device_of(settings.device, 0)
        self.task = PromptedLines.of_text(settings.text, settings.vocabulary, settings.max_answer)
        # what cannot begin leaves the folder to others
        claim(folder, {name: value for name, value in settings.as_json().items() if name not in FREE})
        self.shape = settings.shape(self.task.vocabulary)
        self.n_tokens = self.task.max_prompt + settings.max_answer
        self.seconds: dict[str, float] = {}

    def prepared(self) -> Prepared:
        """Return what PPO begins with: made, or taken from where it was left."""
        base = self._base()
        sft = [self._sft(base, number) for number in range(N_SFT)]
        pairs = self._preferences(sft[0])
        seen, unseen = pairs.cut(self.settings.pairs)
        judge = self._reward_model(sft[0], seen)
        for model in (*sft, judge):
            frozen(model)
        scores, right = ranked(judge, seen)
        accuracy = {"trained": right, "held_out": ranked(judge, unseen)[1]}
        warnings = tuple(doubts(right))
        for text in warnings:
            self.progress(f"warning: {text}")
        return Prepared(
            sft=sft,
            judge=judge,
            reward=RewardModel(judge, float(scores.mean()), float(scores.std()) or 1.0),
            accuracy=accuracy,
            warnings=warnings,
        )

    def arm(self, prepared: Prepared, ppo: Ppo, name: str) -> Arm:
        """Run PPO and judge its policy.

        Raises:
            MeasureError: it diverged.
        """
        claim(None if self.folder is None else self.folder / name, asdict(ppo))
        reference = self._reference(prepared, ppo)
        policy, critic = deepcopy(prepared.sft[0]), None if ppo.shared_critic else deepcopy(prepared.judge)
        for model in (policy, critic):
            if model is not None:
                model.requires_grad_(True)
        phase = Optimisation(policy, critic, ppo, self._setting(prepared, reference, ppo))
        figures = self._run(phase, ppo.iterations, name)
        frozen(policy)
        return Arm(ppo=ppo, figures=figures, judged=self.judged(prepared, policy, reference, ppo))

    def before(self, prepared: Prepared) -> dict[str, dict[str, Judged]]:
        """Judge the fine-tuned models and their soup."""
        first, second = prepared.sft
        models = {"sft": first, "other_sft": second, "soup": averaged(first, second, self.settings.ppo.alpha)}
        return {name: self.judged(prepared, model, first, self.settings.ppo) for name, model in models.items()}

    def judged(self, prepared: Prepared, policy: Policy, reference: Policy, ppo: Ppo) -> dict[str, Judged]:
        """Judge a policy on each of `KINDS` of prompts, the same ones for all policies of a seed."""
        n, seed = self.settings.evaluated, self.settings.seed
        return {
            kind: judged(
                policy,
                reference=reference,
                sft=prepared.sft[0],
                reward=prepared.reward,
                task=self.task,
                prompts=self.task.prompts("prompts", n, seed, TESTED, n_words, n_words=n_words),
                sampling=self._sampling(ppo),
                seed=seed,
            )
            for kind, n_words in KINDS.items()
        }

    # --- phases ----------------------------------------------------------------------------------------------------

    def _run(self, phase: Supervised | Ranking | Optimisation, n_steps: int, name: str) -> list[Figures]:
        folder = None if self.folder is None else self.folder / name
        begin = self.device.now()
        found = run_steps(
            phase,
            n_steps,
            folder,
            name=name,
            every=self.settings.checkpoint_steps,
            progress=self.progress,
        )
        self.seconds[name] = self.device.now() - begin
        return found

    def _base(self) -> Policy:
        """Learn the language: in turn from lines one after another, and from lines that are announced by prompts."""
        fitting, seed = self.settings.base, (self.settings.seed, BASE)
        plain = windows([self.task.encode(line) for line in self.task.split("train")], self.settings.max_answer)
        announced = self._prompted(fitting.steps * fitting.batch // 2, seed)
        model = Policy(self.shape, self.n_tokens)
        model.initialise(self.settings.seed)
        return self._supervised(model, (plain, announced), fitting, seed, "base")

    def _sft(self, base: Policy, number: int) -> Policy:
        """Fine-tune the base model with prompts and an order of its own."""
        seed, fitting = (self.settings.seed, SFT, number), self.settings.sft
        examples = self._prompted(fitting.steps * fitting.batch, seed)
        return self._supervised(deepcopy(base), (examples,), fitting, seed, f"sft_{number + 1}")

    def _prompted(self, n: int, seed: tuple[int, ...]) -> list[Pair]:
        prompts = self.task.prompts("train", n, *seed)
        return [(prompt.tokens, [*self.task.encode(prompt.line), END]) for prompt in prompts]

    def _supervised(
        self,
        model: Policy,
        kinds: Sequence[Sequence[Pair]],
        fitting: Fitting,
        seed: tuple[int, ...],
        name: str,
    ) -> Policy:
        """Learn from batches of one kind of examples after the other, in turn."""
        device = self.device.torch
        model.to(device)

        def batch(step: int) -> Answered:
            turn, kind = divmod(step, len(kinds))
            some = kinds[kind]
            return answered([some[i] for i in order_of((*seed, kind), len(some), turn, fitting.batch)], device)

        self._run(Supervised(model, batch, fitting), fitting.steps, name)
        return model

    def _preferences(self, sft: Policy) -> Preferences:
        """Let a fine-tuned model answer each prompt twice, and prefer by the gold score, with noise."""
        settings = self.settings
        n, seed = settings.pairs + settings.held_out_pairs, (settings.seed, PAIRS)
        prompts = self.task.prompts("prompts", n, *seed)
        first, second = (self._answers(sft, prompts, (*seed, draw)) for draw in range(2))
        rng = np.random.default_rng(seed)
        preferred, other = [], []
        for prompt, a, b in zip(prompts, first, second, strict=True):
            ahead = self.task.gold(prompt, a) - self.task.gold(prompt, b)
            better, worse = (a, b) if prefers(ahead, settings.label_noise, rng.random()) else (b, a)
            preferred.append((prompt.tokens, better))
            other.append((prompt.tokens, worse))
        return Preferences(preferred, other)

    def _answers(self, policy: Policy, prompts: Sequence[Prompt], seed: tuple[int, ...]) -> list[list[int]]:
        drawn = uniforms(len(prompts), self.settings.max_answer, *seed)
        found: list[list[int]] = []
        for i in range(0, len(prompts), GENERATED_AT_ONCE):
            some = [prompt.tokens for prompt in prompts[i : i + GENERATED_AT_ONCE]]
            answers = generate(policy, some, drawn[i : i + len(some)], self._sampling(self.settings.ppo))
            found += answers.answers()
        return found

    def _reward_model(self, sft: Policy, pairs: Preferences) -> Judge:
        judge = Judge(self.shape, self.n_tokens)
        judge.start_from(sft)
        judge.to(self.device.torch)
        fitting = self.settings.reward_model
        self._run(Ranking(judge, pairs, fitting, (self.settings.seed, RANKED)), fitting.steps, "reward_model")
        return judge

    def _reference(self, prepared: Prepared, ppo: Ppo) -> Policy:
        """Return the model from which PPO penalises the distance."""
        if ppo.reference == "sft":
            return prepared.sft[0]
        return averaged(prepared.sft[0], prepared.sft[1], ppo.alpha)

    def _setting(self, prepared: Prepared, reference: Policy, ppo: Ppo) -> Setting:
        @lru_cache(maxsize=1)
        def prompts(number: int) -> list[Prompt]:
            return self.task.prompts("prompts", ppo.batch, self.settings.seed, PPO, number)

        def watch(number: int, answered: Answered) -> Figures:
            return {"gold": fmean(map(self.task.gold, prompts(number), answered.answers()))}

        return Setting(
            reference=reference,
            reward=prepared.reward,
            prompts_of=lambda number: [prompt.tokens for prompt in prompts(number)],
            sampling=self._sampling(ppo),
            device=self.device,
            seed=(self.settings.seed, PPO),
            watch=watch,
        )

    def _sampling(self, ppo: Ppo) -> Sampling:
        return Sampling(max_tokens=self.settings.max_answer, end=END, temperature=ppo.temperature, top_p=ppo.top_p)


def doubts(accuracy: float) -> Iterator[str]:
    """Yield what is wrong with a reward model that ranks this share of its own training pairs right."""
    if accuracy <= LEAST_ACCURACY:
        yield (
            f"the reward model ranks {accuracy:.0%} of the pairs right that it learned from, hardly more than chance: "
            "PPO will follow noise. Train it longer, on more pairs, or with less label noise"
        )


def prefers(ahead: float, noise: float, uniform: float) -> bool:
    """Whether an answer is preferred whose gold score is that much ahead: by chance, where noise is not 0."""
    if noise == 0.0:
        return ahead > 0 or (ahead == 0 and uniform < 0.5)
    return uniform < 1.0 / (1.0 + math.exp(-ahead / noise))


def averaged(first: Policy, second: Policy, alpha: float) -> Policy:
    """Return alpha times the first model's weights and the rest of the second's."""
    found = deepcopy(first)
    theirs = second.state_dict()
    found.load_state_dict({k: alpha * v + (1 - alpha) * theirs[k] for k, v in first.state_dict().items()})
    frozen(found)
    return found

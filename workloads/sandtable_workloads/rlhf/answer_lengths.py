"""Lengths of prompts and answers, drawn by seed, and what a continuous batch of them does step by step.

An engine decodes as many sequences at once as it has slots: whoever ends makes room for the next, and when none is left
the batch shrinks. Each step yields a token of every sequence. Steps of as many rows are alike but for the tokens that
they look back on, so that they are put together: their number and the mean of those tokens are exact.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sandtable_workloads.rlhf.rlhf_parameters import Rlhf

IntArray = npt.NDArray[np.int64]
# steps whose rows look back on numbers of tokens within this factor are put together: attention's time is nearly
# linear in them, but not in its launch
CONTEXT_FACTOR = 2.0
BISECTIONS = 60
# most prompt tokens of one pass that fills the cache (guess: between vLLM's max_num_batched_tokens of 2048 and 16384)
PREFILL_TOKENS = 8192


@dataclass(frozen=True, eq=False)
class Drawn:
    """Tokens of the prompts of an iteration, and of the answer to each: [rollout_batch] each."""

    prompts: IntArray
    answers: IntArray

    @property
    def tokens(self) -> int:
        """Tokens of all answers."""
        return int(self.answers.sum())

    def padded(self, batch: int, *, both: bool = True) -> float:
        """Return the mean tokens of sequences that are padded to the longest of ``batch`` each.

        ``both`` prompts and answers are, each to the longest of theirs; else sequences at their end alone.
        """
        starts = np.arange(0, len(self.prompts), batch)
        parts = (self.prompts, self.answers) if both else (self.prompts + self.answers,)
        longest = sum((np.maximum.reduceat(part, starts) for part in parts), start=np.zeros(len(starts)))
        sizes = np.diff(np.append(starts, len(self.prompts)))
        return float((longest * sizes).sum() / len(self.prompts))

    @property
    def mean(self) -> float:
        """Mean tokens of a sequence."""
        return float((self.prompts + self.answers).mean())


class DecodeSteps(NamedTuple):
    """``n_steps`` steps of ``rows`` sequences each, which look back on ``context`` tokens in the mean."""

    n_steps: int
    rows: float
    context: float


def drawn(p: Rlhf, seed: int) -> Drawn:
    """Return the lengths of an iteration's prompts and answers: equal shares of the distribution, in drawn order."""
    rng = np.random.default_rng(seed)
    n = p.rollout_batch
    return Drawn(
        prompts=_lengths(p, p.prompt_mean_tokens, p.prompt_tokens, n, rng),
        answers=_lengths(p, p.answer_mean_tokens, p.answer_tokens, n, rng),
    )


def _lengths(p: Rlhf, mean: float | None, most: int, n: int, rng: np.random.Generator) -> IntArray:
    if mean is None or mean >= most:
        return np.full(n, most, dtype=np.int64)
    shares = (np.arange(n) + 0.5) / n
    if p.lengths == "geometric":
        relative = -np.log1p(-shares)
    else:
        relative = np.exp(p.length_spread * np.array([NormalDist().inv_cdf(share) for share in shares]))
    low, high = 0.0, float(most) / max(float(relative.min()), 1e-9) + most
    for _ in range(BISECTIONS):
        scale = (low + high) / 2
        low, high = (scale, high) if np.clip(relative * scale, 1, most).mean() < mean else (low, scale)
    return np.asarray(rng.permutation(np.rint(np.clip(relative * high, 1, most))), dtype=np.int64)


def engines_of(p: Rlhf) -> int:
    """Return the engines that generate; where each training rank has its own answers made, no more than there are."""
    engines = p.ranks_of("generation")
    ranks = engines if p.rollout_micro_batch is None else p.ranks_of("policy")
    return max(1, min(engines, ranks, p.rollout_batch))


def slowest_engine(p: Rlhf, lengths: Drawn) -> list[IntArray]:
    """Return the rounds of the engine that ends last: places of the sequences that it answers together."""
    shares = [np.arange(engine, p.rollout_batch, engines_of(p)) for engine in range(engines_of(p))]
    own = p.rollout_micro_batch or p.rollout_batch
    own = own if p.batching == "continuous" else min(own, p.generation_batch)
    rounds = [[share[at : at + own] for at in range(0, len(share), own)] for share in shares]

    def effort(of_engine: Sequence[IntArray]) -> tuple[int, int]:
        longest = sum(int(lengths.answers[places].max()) for places in of_engine)
        return longest, sum(int(lengths.answers[places].sum()) for places in of_engine)

    return max(rounds, key=effort)


def prompt_passes(p: Rlhf, lengths: Drawn, rounds: Sequence[IntArray]) -> tuple[int, float, float]:
    """Return how many passes fill the cache, over how many prompts each, and their tokens, padding included."""
    n_prompts = sum(len(places) for places in rounds)
    if p.batching != "continuous":
        tokens = sum(len(places) * int(lengths.prompts[places].max()) for places in rounds) / n_prompts
        return len(rounds), n_prompts / len(rounds), tokens
    tokens = sum(int(lengths.prompts[places].sum()) for places in rounds) / n_prompts
    batch = max(1, min(round(PREFILL_TOKENS / tokens), *(len(places) for places in rounds), p.generation_batch))
    return -(-n_prompts // batch), float(batch), tokens


def decode_steps(
    lengths: Drawn,
    rounds: Sequence[IntArray],
    slots: int,
    *,
    batching: str = "continuous",
    rows_factor: float = 1.0,
) -> list[DecodeSteps]:
    """Return the steps that decode all rounds one after another, equal ones together, the fullest batch first.

    The first token of an answer comes from its prompt's pass, so that an answer of n tokens takes n - 1 steps. With a
    ``rows_factor`` above 1, batches within that factor are put together too, as their mean: fewer steps to time.
    """
    totals: dict[tuple[float, int], list[float]] = {}
    for places in rounds:
        for n_steps, rows, seen in _stretches(lengths, places, slots, batching):
            size = rows if rows_factor == 1 else math.floor(math.log(rows, rows_factor))
            bin_ = int(math.log(max(1.0, seen / rows), CONTEXT_FACTOR))
            found = totals.setdefault((size, bin_), [0.0, 0.0, 0.0])
            for place, amount in enumerate((n_steps, n_steps * rows, n_steps * seen)):
                found[place] += amount
    return [
        DecodeSteps(int(n), rows / n, tokens / rows)
        for _, (n, rows, tokens) in sorted(totals.items(), reverse=True)
    ]


def _stretches(lengths: Drawn, places: IntArray, slots: int, batching: str) -> list[tuple[int, int, float]]:
    """Return stretches of steps with the same rows: steps, rows, and mean tokens that all rows look back on."""
    if batching == "continuous":
        return _admitting(lengths, places, slots)
    left = lengths.answers[places] - 1
    width, found, now = int(lengths.prompts[places].max()), [], 0
    for end in map(int, np.unique(left) if batching == "shrinking" else [left.max()]):
        rows = int((left >= end).sum()) if batching == "shrinking" else len(places)
        if end > now:
            found.append((end - now, rows, rows * (width + now + (end - now + 1) / 2)))
        now = end
    return found


def _admitting(lengths: Drawn, places: IntArray, slots: int) -> list[tuple[int, int, float]]:
    """Return the stretches of an engine that gives the place of whoever ends to the next."""
    waiting = [(int(lengths.prompts[place]), int(lengths.answers[place]) - 1) for place in places][::-1]
    running: list[tuple[int, int]] = []  # step at which it ends, and what it looks back on less the step
    found: list[tuple[int, int, float]] = []
    now, base = 0, 0
    while waiting or running:
        while waiting and len(running) < slots:
            prompt, left = waiting.pop()
            if left > 0:
                heapq.heappush(running, (now + left, prompt - now))
                base += prompt - now
        if not running:
            break
        end = running[0][0]
        n_steps, rows = end - now, len(running)
        # the k-th step from now on looks back on the prompt, what was said, and the token before it
        found.append((n_steps, rows, base + rows * (now + (n_steps + 1) / 2)))
        now = end
        while running and running[0][0] == now:
            base -= heapq.heappop(running)[1]
    return found


def most_cached(p: Rlhf, lengths: Drawn) -> float:
    """Return the most tokens that an engine keeps keys and values of: its longest sequences at once, or all padded."""
    rounds = slowest_engine(p, lengths)
    if p.batching != "continuous":
        longest = int(lengths.answers.max())
        return float(max(len(places) * (int(lengths.prompts[places].max()) + longest) for places in rounds))
    whole: Any = lengths.prompts + lengths.answers
    return float(max(np.sort(whole[places])[::-1][: p.generation_batch].sum() for places in rounds))

"""A training step of a small decoder, with a mark of the clock between its operators, forward and backward.

The same operators in the same modules as executed training (Llama-style layers). Between two marks lies one part, with
whatever Python does around it, so that the parts of a step are all of it. Imported only where something is measured.

Letters: B sequences, T tokens of one, D width, H heads, E head dimension, I neurons, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as fn
from torch import Tensor, nn

from sandtable_kernels.pytorch import layer_functions
from sandtable_kernels.pytorch.layer_functions import Norm
from sandtable_kernels.pytorch.steps.step_points import BY_NAME, HEAD_DIM, OPTIMIZER, StepSize

N_WARM = 2
# of a part's time, where what is taken off it would leave less
LEAST_FRAC = 0.1
# a step that takes so many times the middle one lies far off
FAR_TIMES = 1.5


class Marks:
    """Times at which parts of a step ended, and at which parts of its backward pass began, in order.

    None are taken while ``silent``. ``end`` is that of the backward pass.
    """

    def __init__(self) -> None:
        self.silent = False
        self.end = 0.0
        self.forward: list[tuple[str, float]] = []
        self.backward: list[tuple[str, float]] = []

    def start(self, *, silent: bool) -> float:
        """Forget the step before, and return when the forward pass of the next begins."""
        begin = perf_counter()
        self.silent, self.forward, self.backward = silent, [("", begin)], []
        return begin

    def __call__(self, part: str, tensor: Tensor) -> Tensor:
        """Note that ``part`` gave ``tensor``; its backward pass begins when the tensor's gradient is complete."""
        if not self.silent:
            self.forward.append((part, perf_counter()))
            tensor.register_hook(partial(self._begins, part))
        return tensor

    def added(self) -> None:
        """Note a sum of the residual stream: its backward pass hands the gradient on, and does nothing."""
        if not self.silent:
            self.forward.append(("residual", perf_counter()))

    def _begins(self, part: str, _: Tensor) -> None:
        self.backward.append((f"{part} backward", perf_counter()))

    def parts(self) -> dict[str, list[float]]:
        """Return the seconds of each call by part."""
        found: dict[str, list[float]] = {}
        for (_, start), (part, stop) in zip(self.forward, self.forward[1:], strict=False):
            found.setdefault(part, []).append(stop - start)
        after = [*self.backward[1:], ("", self.end)]
        for (part, start), (_, stop) in zip(self.backward, after, strict=True):
            found.setdefault(part, []).append(stop - start)
        return found


class Passes(NamedTuple):
    """Seconds of the two passes of a step."""

    forward: float
    backward: float


class Layer(nn.Module):
    """Attention and gated feed-forward, each behind a norm and added to the residual stream [B, T, D]."""

    def __init__(self, size: StepSize, mark: Marks) -> None:
        super().__init__()
        d, i = size.width, size.neurons
        self.size, self.mark = size, mark
        self.attention_norm, self.ffn_norm = Norm(d), Norm(d)
        self.qkv, self.output = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)
        self.up, self.down = nn.Linear(d, 2 * i, bias=False), nn.Linear(i, d, bias=False)

    def forward(self, x: Tensor, turn: Tensor, mask: Tensor) -> Tensor:
        """Return the residual stream after this layer."""
        mark, (b, t, _), h = self.mark, x.shape, self.size.n_heads
        joint = mark("qkv", self.qkv(mark("norm", self.attention_norm(x)))).view(b, t, -1, HEAD_DIM)
        q, k, v = (part.transpose(1, 2) for part in layer_functions.turned_heads(joint, turn, h, h))
        mixed = self._mixed(mark("rope", q), k, v, mask).transpose(1, 2).reshape(b, t, -1)
        x = x + mark("attention output", self.output(mark("attention", mixed)))
        mark.added()
        joint = mark("ffn up", self.up(mark("norm", self.ffn_norm(x))))
        x = x + mark("ffn down", self.down(mark("activation", layer_functions.silu_gated(joint))))
        mark.added()
        return x

    def _mixed(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        if self.size.flash:
            return fn.scaled_dot_product_attention(q, k, v, is_causal=True)
        return layer_functions.written_attention(q, k, v, mask)


class Steps:
    """A decoder, its optimiser, and steps of theirs on made-up tokens."""

    def __init__(self, size: StepSize) -> None:
        self.size, self.mark = size, Marks()
        self.embedding = nn.Embedding(size.vocabulary, size.width)
        self.layers = nn.ModuleList(Layer(size, self.mark) for _ in range(size.layers))
        self.norm, self.head = Norm(size.width), nn.Linear(size.width, size.vocabulary, bias=False)
        modules = nn.ModuleList([self.embedding, self.layers, self.norm, self.head])
        self.optimizer = torch.optim.AdamW(modules.parameters(), lr=1e-4, fused=True)
        angles = torch.linspace(-3.0, 3.0, size.tokens * HEAD_DIM // 2).reshape(size.tokens, 1, HEAD_DIM // 2)
        self.turn = torch.polar(torch.ones_like(angles), angles)
        self.causal = torch.full((size.tokens, size.tokens), -torch.inf).triu(1)
        rng = np.random.default_rng(0)
        self.text = rng.integers(0, size.vocabulary, (2, size.batch, size.tokens))

    def __call__(self) -> tuple[dict[str, list[float]], Passes]:
        """Do a step, and return the seconds of each call by part, and those of its passes."""
        passes, optimizer_s = self._step(silent=False)
        return {**self.mark.parts(), OPTIMIZER: [optimizer_s]}, passes

    def unmarked(self) -> Passes:
        """Do a step without marks, and return the seconds of its passes."""
        return self._step(silent=True)[0]

    def _step(self, *, silent: bool) -> tuple[Passes, float]:
        begin = self.mark.start(silent=silent)
        loss = self._loss()
        middle = perf_counter()
        loss.backward()
        end = self.mark.end = perf_counter()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return Passes(middle - begin, end - middle), perf_counter() - end

    def _loss(self) -> Tensor:
        tokens, targets = (torch.from_numpy(part.copy()) for part in self.text)
        x = self.mark("embedding", self.embedding(tokens))
        for layer in self.layers:
            x = layer(x, self.turn, self.causal)
        logits = self.mark("head", self.head(self.mark("last norm", self.norm(x))))
        return self.mark("loss", fn.cross_entropy(logits.float().flatten(0, 1), targets.flatten()))


def timed_parts(
    name: str, repeats: int, budget_s: float, together: Callable[[float], float]
) -> dict[str, list[float]]:
    """Time steps of a size by its name, up to ``repeats`` within ``budget_s``; return seconds per call by part.

    ``together`` waits for the other workers, and gives the first one's number to all. Each step with marks is followed
    by one without: what the marks take is taken off, and then the middle calls of the parts add up to the mean step,
    which is longer by 3 to 9 % than the sum of what each part takes in the middle (on two cores of a virtual machine:
    in most steps some part or other is held up). Where the backward pass of a layer's norm ends, its gradient is added
    to that of the residual stream: what such a sum takes forward is taken off.
    """
    begin = perf_counter()
    steps, once_s = Steps(BY_NAME[name]), 0.0
    for _ in range(N_WARM):
        start = perf_counter()
        steps()
        steps.unmarked()
        once_s = perf_counter() - start
    left_s = budget_s - (perf_counter() - begin)
    found: dict[str, list[float]] = {}
    marked, plain = [], []
    for _ in range(int(together(max(2.0, min(repeats, left_s / max(once_s, 1e-9)))))):
        together(0.0)
        parts, passes = steps()
        marked.append(passes)
        plain.append(steps.unmarked())
        for part, seconds in parts.items():
            found.setdefault(part, []).extend(seconds)
    _take_off_marks(found, Passes(*np.median(np.subtract(marked, plain), axis=0)), len(plain))
    _add_up(found, Passes(*map(_mean, zip(*plain, strict=True))), len(plain))
    sum_s = float(np.median(found["residual"]))
    found["norm backward"] = _less(found["norm backward"], sum_s)
    for part in ("norm", "norm backward"):
        found[part] += found.pop(f"last {part}")
    return found


def _by_pass(found: dict[str, list[float]], passes: Passes) -> list[tuple[list[str], float]]:
    """Return the parts of each pass beside what belongs to it."""
    forward: list[str] = []
    backward: list[str] = []
    for part in found:
        if part != OPTIMIZER:
            (backward if part.endswith(" backward") else forward).append(part)
    return [(forward, passes.forward), (backward, passes.backward)]


def _take_off_marks(found: dict[str, list[float]], more_s: Passes, n_steps: int) -> None:
    """Take off each part its share of the seconds that the passes of ``n_steps`` each take longer with marks."""
    for parts, seconds in _by_pass(found, more_s):
        n_calls = sum(len(found[part]) for part in parts)
        found |= {part: _less(found[part], max(0.0, seconds) * n_steps / n_calls) for part in parts}


def _add_up(found: dict[str, list[float]], passes_s: Passes, n_steps: int) -> None:
    """Scale the parts of each pass, so that their middle calls add up to its seconds; the optimizer to its mean."""
    for parts, seconds in (*_by_pass(found, passes_s), ([OPTIMIZER], _mean(found[OPTIMIZER]))):
        middle_s = sum(float(np.median(found[part])) * len(found[part]) / n_steps for part in parts)
        found |= {part: [each * seconds / middle_s for each in found[part]] for part in parts}


def _mean(seconds: Sequence[float]) -> float:
    """Return the mean of what does not lie far off: that is no part of a step, but of what others did meanwhile."""
    most = FAR_TIMES * float(np.median(seconds))
    return float(np.mean([each for each in seconds if each <= most]))


def _less(seconds: list[float], less_s: float) -> list[float]:
    """Return what is left of each, a tenth at least."""
    return [max(each - less_s, LEAST_FRAC * each) for each in seconds]


def request_parts(request: dict[str, Any], together: Callable[[float], float]) -> dict[str, list[float]]:
    """Answer a request of `torch_pool.Pool.time_parts`."""
    return timed_parts(request["dims"]["within"], request["repeats"], request["budget_s"], together)

"""What loss a training run reaches: scaling laws of parameters and tokens, and what money buys of it.

Losses are nats per token. A law is one of those in ``scaling_laws.yaml``, a file of the user's own, or fitted to the
losses of executed runs (`fit`). "Loss per dollar" is equation (1) of arXiv 2410.19456: the loss that one more token
takes off, times tokens per dollar.
"""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, TypeAdapter, ValidationError

from sandtable import yaml_files
from sandtable.errors import CalibrationError, ConfigError, UnknownName, missing_extra
from sandtable.hardware import Frozen
from sandtable.runs import run_folder
from sandtable.system import atomic_files
from sandtable.text_files import exists
from sandtable_workloads.training.training_parameters import SlmTraining
from sandtable_workloads.transformer.presets import shape_for
from sandtable_workloads.transformer.shapes import ModelShape

PRESETS = Path(__file__).parent / "scaling_laws.yaml"
# what compute-optimal training takes (arXiv 2203.15556, Table 3: 70B parameters, 1.4 T tokens)
TOKENS_PER_PARAMETER = 20.0
# how far below the smallest model of a law, and beyond its largest model and its most tokens, it is still believed
BELOW = 3.0
BEYOND = 30.0
FloatArray = npt.NDArray[np.float64]


class Law(Frozen):
    """How loss falls with parameters and tokens.

    ``least_params`` and ``most_params`` are the smallest and the largest model that the law was fitted to,
    ``most_tokens`` the most that one of them was trained on; ``counts_embedding`` is whether embeddings count as
    parameters.
    """

    source: str
    least_params: float = Field(default=0.0, ge=0)
    most_params: float | None = Field(default=None, gt=0)
    most_tokens: float | None = Field(default=None, gt=0)
    counts_embedding: ClassVar[bool]

    @abstractmethod
    def loss(self, n_params: float, tokens: float) -> float:
        """Return the loss of ``n_params`` parameters after ``tokens``."""

    @abstractmethod
    def gain_per_token(self, n_params: float, tokens: float) -> float:
        """Return by how much one more token lowers the loss: ``-dL/dD``, in nats."""

    @abstractmethod
    def floor(self, n_params: float) -> float:
        """Return the loss that no number of tokens gets below."""

    @abstractmethod
    def _tokens(self, n_params: float, loss: float) -> float:
        """Return the tokens to reach a loss above the floor."""

    def tokens_for(self, n_params: float, loss: float) -> float:
        """Return the tokens after which the loss is reached.

        Raises:
            ConfigError: no number of tokens is enough.
        """
        least = self.floor(n_params)
        if loss <= least:
            raise ConfigError(
                f"a loss of {loss:g} is out of reach for {n_params:.3g} parameters: more tokens lead to "
                f"{least:.3f} at best; take a larger model, or another scaling law"
            )
        return self._tokens(n_params, loss)

    def covers(self, shape: ModelShape, tokens: float) -> bool:
        """Whether model and tokens are not far from those that the law was fitted to."""
        n_params = self.params_of(shape)
        small = n_params * BELOW < self.least_params
        large = self.most_params is not None and n_params > BEYOND * self.most_params
        long = self.most_tokens is not None and tokens > BEYOND * self.most_tokens
        return not (small or large or long)

    def range(self) -> str:
        """Say in words what the law was fitted to."""
        most = "any number of" if self.most_params is None else f"{self.most_params:.3g}"
        tokens = "" if self.most_tokens is None else f" on at most {self.most_tokens:.3g} tokens"
        return f"{self.least_params:.3g} to {most} parameters{tokens}"

    def params_of(self, shape: ModelShape) -> float:
        """Return a model's parameters as this law counts them."""
        if self.counts_embedding:
            return float(shape.n_params)
        return float(shape.n_params - shape.embedding_params - shape.n_positions * shape.d_model)


class Additive(Law):
    """``E + A / N^alpha + B / D^beta`` (Hoffmann et al., arXiv 2203.15556, equation 2)."""

    form: Literal["additive"] = "additive"
    e: float = Field(ge=0)
    a: float = Field(ge=0)
    b: float = Field(gt=0)
    alpha: float = Field(gt=0)
    beta: float = Field(gt=0)
    counts_embedding: ClassVar[bool] = True

    def loss(self, n_params: float, tokens: float) -> float:
        """Return the loss of ``n_params`` parameters after ``tokens``."""
        return float(self.floor(n_params) + self.b * tokens**-self.beta)

    def gain_per_token(self, n_params: float, tokens: float) -> float:
        """Return by how much one more token lowers the loss."""
        return float(self.beta * self.b * tokens ** (-self.beta - 1))

    def floor(self, n_params: float) -> float:
        """Return the loss that no number of tokens gets below."""
        return float(self.e + self.a * n_params**-self.alpha)

    def _tokens(self, n_params: float, loss: float) -> float:
        return float((self.b / (loss - self.floor(n_params))) ** (1 / self.beta))


class Joint(Law):
    """``((N_c / N)^(alpha_n / alpha_d) + D_c / D)^alpha_d`` (Kaplan et al., arXiv 2001.08361, equation 1.5)."""

    form: Literal["joint"]
    n_c: float = Field(gt=0)
    d_c: float = Field(gt=0)
    alpha_n: float = Field(gt=0)
    alpha_d: float = Field(gt=0)
    counts_embedding: ClassVar[bool] = False

    def _of_params(self, n_params: float) -> float:
        return float((self.n_c / n_params) ** (self.alpha_n / self.alpha_d))

    def loss(self, n_params: float, tokens: float) -> float:
        """Return the loss of ``n_params`` parameters after ``tokens``."""
        return float((self._of_params(n_params) + self.d_c / tokens) ** self.alpha_d)

    def gain_per_token(self, n_params: float, tokens: float) -> float:
        """Return by how much one more token lowers the loss."""
        inner = self._of_params(n_params) + self.d_c / tokens
        return float(self.alpha_d * inner ** (self.alpha_d - 1) * self.d_c / tokens**2)

    def floor(self, n_params: float) -> float:
        """Return the loss that no number of tokens gets below."""
        return float((self.n_c / n_params) ** self.alpha_n)

    def _tokens(self, n_params: float, loss: float) -> float:
        return float(self.d_c / (loss ** (1 / self.alpha_d) - self._of_params(n_params)))


AnyLaw = Annotated[Additive | Joint, Field(discriminator="form")]
_LAW: TypeAdapter[Additive | Joint] = TypeAdapter(AnyLaw)


@lru_cache(maxsize=1)
def presets() -> dict[str, Law]:
    """Return the published laws by name."""
    table = yaml_files.plain(yaml_files.read_yaml(PRESETS))
    return {name: _LAW.validate_python(fields) for name, fields in table.items()}


def law_named(name: str) -> Law:
    """Return a published law by name, read one from a YAML file by path, or fit one to runs with commas between.

    Raises:
        UnknownName: none of these; with the nearest names.
        ConfigError: the file holds no law.
    """
    if name in presets():
        return presets()[name]
    runs = [part.strip() for part in name.split(",")]
    if all(exists(Path(run)) and Path(run).is_dir() for run in runs):
        return _fitted(tuple(runs))
    if not name.endswith((".yaml", ".yml")):
        raise UnknownName("scaling law", name, presets())
    try:
        return _LAW.validate_python(yaml_files.plain(yaml_files.read_yaml(Path(name))))
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"][1:]) or "form"
        raise ConfigError(f"{where}: {fault['msg']}", file=name) from None


@lru_cache(maxsize=32)
def _fitted(runs: tuple[str, ...]) -> Law:
    return fit_runs(runs).law


def save(law: Law, path: Path) -> None:
    """Write a law to a file that `law_named` reads."""
    atomic_files.write_atomically(path, yaml_files.dump_yaml(law.model_dump(mode="json")))


# --- money -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Bought:
    """What money buys with one law, one model and one configuration.

    ``tokens_per_usd`` is the configuration's; it must not be zero.
    """

    law: Law
    n_params: float
    tokens_per_usd: float

    def loss_after(self, usd: float) -> float:
        """Return the loss after spending ``usd``."""
        return self.law.loss(self.n_params, usd * self.tokens_per_usd)

    def usd_to_reach(self, loss: float) -> float:
        """Return the dollars to reach a loss.

        Raises:
            ConfigError: no number of tokens is enough.
        """
        return self.law.tokens_for(self.n_params, loss) / self.tokens_per_usd

    def loss_per_usd(self, tokens: float) -> float:
        """Return the loss that the next dollar takes off after ``tokens``, in nats (equation 1)."""
        return self.law.gain_per_token(self.n_params, tokens) * self.tokens_per_usd


# --- fitting to executed runs ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LossPoint:
    """The loss of a model of ``n_params`` parameters after ``tokens``."""

    n_params: float
    tokens: float
    loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedLaw:
    """A law, how far its points lie from it (root mean square of the logarithms), and how many there were."""

    law: Additive
    rms_log_error: float
    n_points: int


def points_of_run(
    losses: Sequence[float], *, n_params: float, tokens_per_step: float, first_step: int = 1, n_points: int = 24
) -> list[LossPoint]:
    """Return points of one run's loss curve, thinned: means of spans that grow with the tokens seen.

    Args:
        losses: Loss of every step from ``first_step`` on; a power law does not hold from the very first.
        n_params: Parameters of the model.
        tokens_per_step: Tokens of one step.
        first_step: The step that ``losses`` begin with, counted from 1.
        n_points: At most so many points.
    """
    edges = np.unique(np.geomspace(first_step, first_step + len(losses), n_points + 1).round().astype(int))
    spans = [(int(a), int(b)) for a, b in itertools.pairwise(edges)]
    return [
        LossPoint(
            n_params,
            tokens_per_step * math.sqrt(a * (b - 1)),
            float(np.mean(losses[a - first_step : b - first_step])),
        )
        for a, b in spans
    ]


def fit_runs(names: Sequence[str]) -> FittedLaw:
    """Fit a law to the measured losses of saved runs, by name or folder, one repeat of each.

    Raises:
        ConfigError: no such run, or one without losses.
    """
    points: list[LossPoint] = []
    for name in names:
        measured = run_folder.open_run(name).measurement()
        metric = None if measured is None else measured.metrics.get("loss.mean")
        if measured is None or metric is None:
            raise ConfigError("holds no measured losses of several steps", file=name)
        if metric.every != 1:
            raise ConfigError("keeps a part of its losses only: run fewer steps or repeats", file=name)
        run = SlmTraining.model_validate(measured.scenario["parameters"])
        points += points_of_run(
            metric.samples[: run.steps],
            n_params=shape_for(run.model).n_params,
            tokens_per_step=run.tokens_per_step,
            first_step=run.warmup_steps + 1,
        )
    return fit(points, source=f"fitted to the losses of {', '.join(names)}")


def fit(points: Sequence[LossPoint], *, source: str = "fitted to executed runs") -> FittedLaw:
    """Fit ``E + A / N^alpha + B / D^beta`` to points: Huber loss on the logarithms, as arXiv 2203.15556 does (D.2).

    With one size of model the term of parameters cannot be told from ``E``: it is left out.

    Raises:
        CalibrationError: fewer points than the law has constants, or losses that are no positive numbers.
        NoDevice: SciPy is not installed.
    """
    try:
        from scipy.optimize import least_squares
    except ImportError:
        raise missing_extra("scipy", "run") from None
    n, d, loss = (np.array([getattr(p, name) for p in points], float) for name in LossPoint.__dataclass_fields__)
    sizes = len(np.unique(n))
    needed = 3 if sizes == 1 else 5
    if len(points) < needed or not np.all(np.isfinite(loss) & (loss > 0) & (d > 0)):
        raise CalibrationError(f"a scaling law needs at least {needed} positive losses, not {len(points)}")
    scale = (float(np.median(n)), float(np.median(d)))

    def residuals(x: FloatArray) -> FloatArray:
        return np.asarray(np.log(_additive(x, n / scale[0], d / scale[1], sizes)) - np.log(loss))

    best = min((_solve(least_squares, residuals, start) for start in _starts(loss, sizes)), key=lambda s: s.cost)
    rms = float(np.sqrt(np.mean(residuals(best.x) ** 2)))
    ends = {"least_params": np.min(n), "most_params": np.max(n), "most_tokens": np.max(d)}
    law = _law_of(best.x, scale, sizes, source).model_copy(update={name: float(end) for name, end in ends.items()})
    return FittedLaw(law=law, rms_log_error=rms, n_points=len(points))


def _solve(least_squares: Any, residuals: Any, start: FloatArray) -> Any:
    low = np.array([-12.0, -12.0, 0.01, -12.0, 0.01])[: len(start)]
    high = np.array([3.0, 6.0, 1.0, 6.0, 1.0])[: len(start)]
    return least_squares(residuals, start, bounds=(low, high), loss="huber", f_scale=1e-2, x_scale="jac")


def _starts(loss: FloatArray, sizes: int) -> list[FloatArray]:
    """Return starting points: logarithms of E and B and beta, then of A and alpha where there are several sizes."""
    low = float(np.log(np.min(loss)))
    found = []
    for share in (0.2, 0.6, 0.9):
        for exponent in (0.2, 0.5, 0.9):
            rest = float(np.log(max(1e-3, np.median(loss) - share * np.min(loss))))
            start = [low + float(np.log(share)), rest, exponent]
            found.append(np.array(start if sizes == 1 else [*start, rest - 1.0, exponent]))
    return found


def _additive(x: FloatArray, n: FloatArray, d: FloatArray, sizes: int) -> FloatArray:
    total = np.exp(x[0]) + np.exp(x[1]) * d ** -x[2]
    return np.asarray(total if sizes == 1 else total + np.exp(x[3]) * n ** -x[4], dtype=np.float64)


def _law_of(x: FloatArray, scale: tuple[float, float], sizes: int, source: str) -> Additive:
    several = sizes > 1
    return Additive(
        source=source,
        e=float(np.exp(x[0])),
        b=float(np.exp(x[1]) * scale[1] ** x[2]),
        beta=float(x[2]),
        a=float(np.exp(x[3]) * scale[0] ** x[4]) if several else 0.0,
        alpha=float(x[4]) if several else 1.0,
    )

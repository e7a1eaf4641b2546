"""Which neurons each token uses, layer by layer: synthetic traces with a given reuse, and recorded ones.

Bytes and requests do not depend on the values of weights, only on which neurons are used. What matters is the
aggregate ``s_agg(k)``, the share of neurons used by ``k`` tokens in a row (LLM in a flash, section 3.1, figure 4a):
a window of ``k`` tokens holds ``s_agg(k)`` in memory, and each token loads ``s_agg(k + 1) - s_agg(k)``.

A synthetic neuron switches between used and unused as a Markov chain. Neuron ``i`` is used by a share ``p_i`` of
tokens; given its state, the next token uses it with probability ``p_i (1 - rho)`` if it was unused, and
``p_i (1 - rho) + rho`` if it was used. Hence, exactly::

    s_agg(k) = mean_i [ 1 - (1 - p_i) (1 - p_i (1 - rho))^(k - 1) ]

Popularities are logit-normal, ``p_i = sigmoid(mu + sigma z_i)`` with ``z`` at the quantiles of a normal; ``mu`` sets
the mean, and ``(sigma, rho)`` are fitted per layer to the wanted growth ``s_agg(k) / s_agg(1)``.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, pairwise
from pathlib import Path
from statistics import NormalDist
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from sandtable.errors import ConfigError
from sandtable.system import atomic_files, checksums
from sandtable.text_files import read_bytes
from sandtable_kernels.neurons.sparsity import SparsityPreset, preset, resample
from sandtable_kernels.support import Ids

Floats = npt.NDArray[np.float64]
Growth = float | Mapping[int, float]

# what a file of a recorded trace holds
_ARRAYS, _DIGEST = ("n_layers", "n_neurons", "ids", "offsets"), "digest"
# an exponent is fitted at these numbers of tokens, the longer ones only while most neurons are still unused
_FIT_TOKENS = (2, 3, 4, 5, 6, 8, 16, 31)
_FIT_UP_TO = 0.55
_GRID = 512
# a billion neurons' numbers
MOST_BYTES = 4 * 1024**3
# what NumPy and the ZIP reader raise on bytes that are no archive of arrays
_NO_ARCHIVE = (
    OSError,
    ValueError,
    TypeError,
    EOFError,
    BadZipFile,
    AttributeError,
    LookupError,
    ArithmeticError,
    NotImplementedError,
    RuntimeError,
    MemoryError,
    SyntaxError,
    zlib.error,
    struct.error,
)
_SIGMA, _RHO = (0.02, 8.0), (0.0, 0.98)


class Trace(ABC):
    """A source of active neurons: equal calls give equal neurons, to the planner and to the executor."""

    n_layers: int
    n_neurons: int

    @abstractmethod
    def tokens(self, n: int) -> Iterator[list[Ids]]:
        """Yield, for each of ``n`` tokens from the first, the active neurons per layer: int64, ascending."""

    @abstractmethod
    def expected_aggregate(self, k: int, layer: int | None = None) -> float:
        """Return ``s_agg(k)``, a share from 0 to 1, of one layer or on average over layers."""

    def expected_new(self, k: int, layer: int | None = None) -> float:
        """Return the share of neurons that a token loads when a window of ``k`` tokens is kept."""
        if k == 0:
            return self.expected_aggregate(1, layer)
        return self.expected_aggregate(k + 1, layer) - self.expected_aggregate(k, layer)


class SyntheticTrace(Trace):
    """Neurons that switch on and off as Markov chains; see the module for the model.

    Args:
        n_layers: Layers of the model.
        n_neurons: Neurons per layer.
        active_frac: Share of neurons used by one token; one number, or one per layer. A list of another length is
            stretched over the layers.
        growth: How ``s_agg(k) / s_agg(1)`` grows: the exponent of a power of ``k``, or its values at some ``k``.
        seed: Of popularities' order and of switching.

    Raises:
        ConfigError: a share outside of 0 to 1, or growth that no reuse of neurons can give.
    """

    def __init__(
        self,
        n_layers: int,
        n_neurons: int,
        active_frac: float | Sequence[float],
        *,
        growth: Growth = 0.415,
        seed: int = 0,
    ) -> None:
        if n_layers < 1 or n_neurons < 1:
            raise ConfigError(f"a trace needs layers and neurons, not {n_layers} layers of {n_neurons}")
        given = [active_frac] if isinstance(active_frac, int | float) else list(active_frac)
        if not given or not all(0 <= share <= 1 for share in given):
            raise ConfigError(f"shares of active neurons lie between 0 and 1, not {active_frac}")
        self.n_layers = n_layers
        self.n_neurons = n_neurons
        self.seed = seed
        self.active_frac = resample(given, n_layers)
        self._fits = [fit_population(share, _growth_points(growth, share)) for share in self.active_frac]
        self._expected: dict[tuple[int, int], float] = {}

    @classmethod
    def from_preset(
        cls, name: str | SparsityPreset, n_layers: int, n_neurons: int, *, predicted: bool = True, seed: int = 0
    ) -> SyntheticTrace:
        """Make the trace of a published model, its layers stretched to ``n_layers``.

        Args:
            name: A name of `sandtable_kernels.neurons.sparsity.presets`, or a preset.
            n_layers: Layers of the model.
            n_neurons: Neurons per layer.
            predicted: Take the neurons that the predictor asks for, which are loaded; otherwise the truly active.
            seed: As above.
        """
        chosen = preset(name) if isinstance(name, str) else name
        shares = chosen.predicted_frac if predicted else chosen.active_frac
        return cls(n_layers, n_neurons, shares, growth=chosen.growth, seed=seed)

    def tokens(self, n: int) -> Iterator[list[Ids]]:
        """Yield the active neurons of ``n`` tokens; a longer run begins with the tokens of a shorter one."""
        layers = [
            _switching(self.popularity(layer), self._fits[layer][1], np.random.default_rng([self.seed, layer, 1]))
            for layer in range(self.n_layers)
        ]
        for _ in range(n):
            yield [next(layer) for layer in layers]

    def popularity(self, layer: int) -> Floats:
        """Return the share of tokens that uses each neuron of ``layer``, float64 [n_neurons]."""
        order = np.random.default_rng([self.seed, layer, 0]).permutation(self.n_neurons)
        return self._quantiles(layer)[order]

    def persistence(self, layer: int) -> float:
        """Return ``rho`` of ``layer``: 0 when tokens are independent, towards 1 when neurons stay as they are."""
        return self._fits[layer][1]

    def expected_aggregate(self, k: int, layer: int | None = None) -> float:
        """Return ``s_agg(k)`` by the closed form."""
        if layer is None:
            return sum(self.expected_aggregate(k, i) for i in range(self.n_layers)) / self.n_layers
        if (k, layer) not in self._expected:
            closed = aggregate(self._quantiles(layer), self.persistence(layer), np.array([k]))
            self._expected[k, layer] = float(closed[0])
        return self._expected[k, layer]

    def _quantiles(self, layer: int) -> Floats:
        return _popularities(self.active_frac[layer], self._fits[layer][0], self.n_neurons)


def _switching(popularity: Floats, rho: float, rng: np.random.Generator) -> Iterator[Ids]:
    """Yield the active neurons of one layer, token by token, from a stationary start."""
    turn_on = (popularity * (1 - rho)).astype(np.float32)
    draws = np.empty(len(popularity), np.float32)
    chance = np.empty_like(draws)
    state = rng.random(len(popularity)) < popularity
    while True:
        yield np.flatnonzero(state)
        np.multiply(state, np.float32(rho), out=chance)
        chance += turn_on
        rng.random(out=draws, dtype=np.float32)
        state = draws < chance


def aggregate(popularity: Floats, rho: float, k: npt.NDArray[np.integer[Any]]) -> Floats:
    """Return ``s_agg`` at each ``k`` [n] for neurons of the given popularities: the closed form of this module."""
    stays_off = np.log1p(-np.minimum(popularity * (1 - rho), 1 - 1e-12))
    unused = np.exp(np.multiply.outer(np.asarray(k) - 1, stays_off)) * (1 - popularity)
    closed: Floats = 1 - unused.mean(axis=1)
    return closed


def _growth_points(growth: Growth, active_frac: float) -> tuple[tuple[int, float], ...]:
    """Return the pairs of ``k`` and ``s_agg(k) / s_agg(1)`` to fit."""
    if isinstance(growth, Mapping):
        points = {int(k): float(value) for k, value in growth.items() if k > 1}
    else:
        rises = {k: float(k) ** growth for k in _FIT_TOKENS}
        points = {k: rise for k, rise in rises.items() if k <= 5 or active_frac * rise <= _FIT_UP_TO}
    values = [points[k] for k in sorted(points)]
    if not values or values[0] < 1 or any(b < a for a, b in pairwise(values)):
        raise ConfigError(f"the share of neurons used by k tokens must grow with k from 1 on; got growth {growth}")
    return tuple(sorted(points.items()))


@lru_cache(maxsize=4096)
def fit_population(active_frac: float, growth: tuple[tuple[int, float], ...]) -> tuple[float, float]:
    """Find ``(sigma, rho)`` whose closed form comes nearest to ``active_frac`` times ``growth``.

    Bounded least squares on the logarithms, by Levenberg's method. Targets that even independent, equally popular
    neurons would not reach are lowered to what those reach, ``1 - (1 - active_frac)^k``.

    Args:
        active_frac: ``s_agg(1)``.
        growth: Pairs of ``k`` and ``s_agg(k) / s_agg(1)``.
    """
    if not 0 < active_frac < 1:
        return _SIGMA[0], 0.0
    k = np.array([tokens for tokens, _ in growth])
    wanted = np.minimum(active_frac * np.array([rise for _, rise in growth]), 1 - (1 - active_frac) ** k)

    def residuals(theta: Floats) -> Floats:
        values = _popularities(active_frac, float(theta[0]), _GRID)
        return np.log(aggregate(values, float(theta[1]), k) / wanted)

    sigma, rho = _levenberg(residuals, np.array([2.0, 0.4]))
    return float(sigma), float(rho)


def _levenberg(residuals: Any, theta: Floats) -> Floats:
    """Minimise the sum of squares within the bounds of sigma and rho."""
    low, high = np.array([_SIGMA[0], _RHO[0]]), np.array([_SIGMA[1], _RHO[1]])
    now, damping = residuals(theta), 1e-3
    for _ in range(60):
        nudged = [np.where(np.arange(2) == i, theta + 1e-5, theta) for i in range(2)]
        slope = np.stack([(residuals(point) - now) / 1e-5 for point in nudged], axis=1)
        normal = slope.T @ slope
        step = np.linalg.solve(normal + damping * np.diag(np.diag(normal) + 1e-12), slope.T @ now)
        tried = np.clip(theta - step, low, high)
        then = residuals(tried)
        better = bool(then @ then < now @ now)
        damping = damping / 4 if better else damping * 6
        if better:
            shift, theta, now = np.abs(tried - theta).max(), tried, then
            if shift < 1e-7:
                break
        elif damping > 1e9:
            break
    return theta


@lru_cache(maxsize=8)
def _normal_quantiles(n: int) -> Floats:
    inverse = NormalDist().inv_cdf
    half = np.array([inverse((i + 0.5) / n) for i in range((n + 1) // 2)])
    return np.concatenate([half, -half[: n // 2][::-1]])


@lru_cache(maxsize=256)
def _popularities(active_frac: float, sigma: float, n: int) -> Floats:
    """Return ``n`` popularities, ascending, whose mean is ``active_frac``; not to be written to."""
    if not 0 < active_frac < 1:
        return np.full(n, float(active_frac))
    spread = sigma * _normal_quantiles(n)
    # start from the mean of a probit-normal, which is closed, then Newton on the mean itself
    mu = math.log(active_frac / (1 - active_frac)) * math.sqrt(1 + sigma * sigma / 2.89)
    for _ in range(50):
        values = 1 / (1 + np.exp(-(mu + spread)))
        miss = float(values.mean()) - active_frac
        if abs(miss) < 1e-12:
            break
        slope = max(float((values * (1 - values)).mean()), 1e-9)
        mu -= float(np.clip(miss / slope, -2.0, 2.0))
    result: Floats = 1 / (1 + np.exp(-(mu + spread)))
    return result


# --- recorded traces ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RecordedTrace(Trace):
    """Active neurons that were recorded from a model.

    Attributes:
        n_layers: Layers of the model.
        n_neurons: Neurons per layer.
        ids: Active neurons, all tokens and layers one after the other, int64; ascending within a layer.
        offsets: Where each token's layers begin in ``ids``, int64 [tokens * layers + 1].
    """

    n_layers: int
    n_neurons: int
    ids: Ids
    offsets: Ids

    @classmethod
    def load(cls, path: str | Path) -> RecordedTrace:
        """Read a file that `save_trace` wrote.

        Raises:
            ConfigError: no such file, another format, or neurons that do not fit the layers it states.
        """
        file = str(path)
        try:
            with np.load(io.BytesIO(read_bytes(Path(path), MOST_BYTES)), allow_pickle=False) as archive:
                data = {key: archive[key] for key in _ARRAYS}
                stated = archive[_DIGEST].item() if _DIGEST in archive else None
            if stated is not None and stated != _digest(data):
                raise ConfigError(checksums.WRONG, file=file)
        except KeyError as error:
            raise ConfigError(f"not a trace: {error.args[0]}", file=file) from None
        except _NO_ARCHIVE:
            raise ConfigError("not a trace: write one with save_trace", file=file) from None
        return cls._checked(data, file)

    @classmethod
    def _checked(cls, data: Mapping[str, Any], file: str) -> RecordedTrace:
        for key, n_dims in (("n_layers", 0), ("n_neurons", 0), ("ids", 1), ("offsets", 1)):
            if data[key].ndim != n_dims or data[key].dtype.kind not in "iu":
                raise ConfigError(f"{key} must be {'a list of ' if n_dims else ''}whole numbers", file=file)
        n_layers, n_neurons = int(data["n_layers"]), int(data["n_neurons"])
        ids, offsets = data["ids"].astype(np.int64), data["offsets"].astype(np.int64)
        if n_layers < 1 or n_neurons < 1:
            raise ConfigError(f"{n_layers} layers of {n_neurons} neurons are not a model", file=file)
        if len(offsets) < 1 or (len(offsets) - 1) % n_layers:
            raise ConfigError(
                f"the trace ends within a token: it is not a multiple of {n_layers} layers", file=file
            )
        if offsets[0] != 0 or offsets[-1] != len(ids) or bool((np.diff(offsets) < 0).any()):
            raise ConfigError("offsets must rise from 0 to the number of ids", file=file)
        if len(ids) and (ids.min() < 0 or ids.max() >= n_neurons):
            raise ConfigError(f"neurons must be numbered 0 to {n_neurons - 1}", file=file)
        begins = np.zeros(len(ids) + 1, bool)
        begins[offsets] = True
        if bool(((np.diff(ids) <= 0) & ~begins[1:-1]).any()):
            raise ConfigError("neurons of a layer must ascend, each at most once", file=file)
        return cls(n_layers, n_neurons, ids, offsets)

    @property
    def n_tokens(self) -> int:
        """Recorded tokens."""
        return (len(self.offsets) - 1) // self.n_layers

    def tokens(self, n: int) -> Iterator[list[Ids]]:
        """Yield the first ``n`` recorded tokens.

        Raises:
            ConfigError: fewer were recorded.
        """
        if n > self.n_tokens:
            raise ConfigError(f"{n} tokens asked for, but the trace holds {self.n_tokens}")
        for token in range(n):
            yield [self._active(token, layer) for layer in range(self.n_layers)]

    def expected_aggregate(self, k: int, layer: int | None = None) -> float:
        """Return ``s_agg(k)`` averaged over all runs of ``k`` recorded tokens.

        Raises:
            ConfigError: fewer than ``k`` tokens were recorded.
        """
        if not 1 <= k <= self.n_tokens:
            raise ConfigError(f"{k} tokens in a row asked for, but the trace holds {self.n_tokens}")
        layers = range(self.n_layers) if layer is None else (layer,)
        return sum(self._aggregate(k, one) for one in layers) / len(layers)

    def _aggregate(self, k: int, layer: int) -> float:
        # a neuron is missed by the runs of k that fit between two uses of it
        last = np.full(self.n_neurons, -1)
        n_runs, missed = self.n_tokens - k + 1, 0
        for token in range(self.n_tokens):
            active = self._active(token, layer)
            missed += int(np.maximum(token - last[active] - k, 0).sum())
            last[active] = token
        missed += int(np.maximum(self.n_tokens - last - k, 0).sum())
        return 1 - missed / (n_runs * self.n_neurons)

    def _active(self, token: int, layer: int) -> Ids:
        place = token * self.n_layers + layer
        return self.ids[self.offsets[place] : self.offsets[place + 1]]


def save_trace(path: str | Path, trace: Trace, n_tokens: int) -> None:
    """Write the first ``n_tokens`` of a trace to a compressed NumPy archive that `RecordedTrace.load` reads."""
    parts = [active for token in islice(trace.tokens(n_tokens), n_tokens) for active in token]
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts], dtype=np.int64)])
    ids = np.concatenate(parts) if parts else np.empty(0, np.int64)
    data: dict[str, Any] = {"n_layers": np.array(trace.n_layers), "n_neurons": np.array(trace.n_neurons)}
    data |= {"ids": ids.astype(np.int32), "offsets": offsets}
    data[_DIGEST] = np.array(_digest(data))
    file = io.BytesIO()
    np.savez_compressed(file, **data)
    atomic_files.write_atomically(Path(path), file.getvalue())


def _digest(data: Mapping[str, Any]) -> str:
    """Return the checksum of a trace's arrays, whatever way they are packed."""
    parts = (f"{key} {data[key].dtype.str} {data[key].shape} ".encode() + data[key].tobytes() for key in _ARRAYS)
    return checksums.digest(b"".join(parts))

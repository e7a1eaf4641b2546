"""Levels of a butterfly transform as vector code, emitted for a base and strides. Importing this module needs numba.

Positions lie in the lanes of vectors, and weights stay in registers while one row after the other passes: each is
loaded once for a block of rows. Levels whose stride is a multiple of the lanes combine whole vectors (`level`). The
last strides are smaller than a vector: there, levels combine a few vectors with themselves, their lanes rotated within
groups, without going through memory in between (`tail`). LLVM splits vectors where the processor's are narrower.

All arrays are float32; places are counted in elements from an array's start, and ``pitch`` is the distance of rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils as untyped_cgutils
from numba.extending import intrinsic

# numba's helpers have no annotations
cgutils: Any = untyped_cgutils

LANES = 16
# lanes of the code of levels: what divides no wider vector takes the next, at last one number at a time
WIDTHS = {2: (16, 1), 4: (16, 1), 8: (16, 4, 1), 16: (16, 1)}
_FLOAT, _INT = ir.FloatType(), ir.IntType(64)
# a product and its addition may become one operation with one rounding
_FUSED = ("contract", "nsz")
# the smallest alignment: rows of any width follow one another
_ALIGN = 4


class Code:
    """Vector instructions, written one after another."""

    def __init__(self, builder: Any, lanes: int = LANES) -> None:
        self.builder, self.lanes = builder, lanes
        self.kind = ir.VectorType(_FLOAT, lanes)
        self.zero = ir.Constant(self.kind, [0.0] * lanes)

    def at(self, *terms: Any) -> Any:
        """Return the sum of numbers and values."""
        total = ir.Constant(_INT, sum(term for term in terms if isinstance(term, int)))
        for term in terms:
            total = total if isinstance(term, int) else self.builder.add(total, term)
        return total

    def times(self, value: Any, factor: int) -> Any:
        """Return a product."""
        return self.builder.mul(value, ir.Constant(_INT, factor))

    def _address(self, data: Any, place: Any) -> Any:
        return self.builder.bitcast(self.builder.gep(data, [place]), self.kind.as_pointer())

    def load(self, data: Any, place: Any) -> Any:
        """Return the vector at a place."""
        return self.builder.load(self._address(data, place), align=_ALIGN)

    def store(self, value: Any, data: Any, place: Any) -> None:
        """Write a vector."""
        self.builder.store(value, self._address(data, place), align=_ALIGN)

    def product(self, a: Any, b: Any) -> Any:
        """Return a product lane by lane."""
        return self.builder.fmul(a, b, flags=_FUSED)

    def plus(self, total: Any, a: Any, b: Any = None) -> Any:
        """Return ``total + a * b``, or ``total + a``; ``total`` may be None for nothing."""
        term = a if b is None else self.product(a, b)
        return term if total is None else self.builder.fadd(total, term, flags=_FUSED)

    def pick(self, vectors: Sequence[Any], wanted: Sequence[int]) -> Any:
        """Return one lane after another: lane ``wanted % lanes`` of the vector ``wanted // lanes``."""
        used = sorted({place // self.lanes for place in wanted})
        if len(used) > 2:
            cut = used[len(used) // 2] * self.lanes
            low = self.pick(vectors, [place if place < cut else min(wanted) for place in wanted])
            high = self.pick(vectors, [place if place >= cut else max(wanted) for place in wanted])
            return self._shuffle(low, high, [i + self.lanes * (place >= cut) for i, place in enumerate(wanted)])
        lanes = [place % self.lanes + self.lanes * used.index(place // self.lanes) for place in wanted]
        return self._shuffle(vectors[used[0]], vectors[used[-1]], lanes)

    def _shuffle(self, a: Any, b: Any, lanes: list[int]) -> Any:
        if lanes == list(range(self.lanes)):
            return a
        mask = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), lanes)
        return self.builder.shuffle_vector(a, b, mask)

    @contextmanager
    def rows(self, n_rows: Any) -> Iterator[Any]:
        """Open a loop over rows; gives its index."""
        with cgutils.for_range(self.builder, n_rows) as loop:
            yield loop.index

    def row(self, at: Any, pitch: Any, index: Any, place: Any) -> Any:
        """Return where a place of a row is."""
        return self.at(at, self.builder.mul(index, pitch), place)

    @contextmanager
    def steps(self, stop: Any, step: int) -> Iterator[Any]:
        """Open a loop from 0 to ``stop``; gives its index."""
        first, width = (ir.Constant(_INT, value) for value in (0, step))
        with cgutils.for_range_slice(self.builder, first, stop, width) as (index, _):
            yield index

    def is_set(self, value: Any) -> Any:
        """Return whether a number is not zero."""
        return self.builder.icmp_signed("!=", value, ir.Constant(_INT, 0))

    def dot(self, factors: Sequence[Any], x: Sequence[Any]) -> Any:
        """Return the sum of products of vectors."""
        total = None
        for factor, value in zip(factors, x, strict=True):
            total = self.plus(total, factor, value)
        return total

    def group(self, data: Any, place: Any, stride: Any, base: int) -> list[Any]:
        """Return the vectors of a group."""
        return [self.load(data, self.at(place, self.times(stride, j))) for j in range(base)]

    def weights_place(self, weights_at: Any, place: Any, stride: Any, i: int, base: int) -> Any:
        """Return where the weights of a group's position ``i`` are stored."""
        return self.at(weights_at, self.times(self.at(place, self.times(stride, i)), base))

    def factors(self, weights: Any, weights_at: Any, place: Any, stride: Any, base: int) -> list[list[Any]]:
        """Return the weights of a group, ``[i][j]`` from j to i."""
        return [
            self.columns(weights, self.weights_place(weights_at, place, stride, i, base), base) for i in range(base)
        ]

    def clear(self, totals: Sequence[Sequence[Any]]) -> None:
        """Set sums to zero."""
        for total in itertools.chain(*totals):
            self.builder.store(self.zero, total)

    def add(self, total: Any, a: Any, b: Any) -> None:
        """Add a product to a sum."""
        self.builder.store(self.plus(self.builder.load(total), a, b), total)

    def add_stored(self, vectors: Sequence[Any], data: Any, place: Any) -> None:
        """Add vectors to those that are stored from a place on."""
        for part, vector in enumerate(vectors):
            at = self.at(place, self.lanes * part)
            self.store(self.plus(self.load(data, at), vector), data, at)

    def columns(self, data: Any, place: Any, base: int) -> list[Any]:
        """Return what is stored as [lanes, base] as ``base`` vectors, one for each column."""
        found, width = [self.load(data, self.at(place, self.lanes * part)) for part in range(base)], base
        while width > 1:
            pairs = list(zip(found[::2], found[1::2], strict=True))
            found = [self._shuffle(a, b, list(range(odd, 2 * self.lanes, 2))) for odd in (0, 1) for a, b in pairs]
            width //= 2
        return found

    def interleaved(self, columns: Sequence[Any]) -> list[Any]:
        """Return vectors of what is stored as [lanes, base], for one vector of each column."""
        found, half, n = list(columns), len(columns) // 2, self.lanes
        low, high = ([i // 2 + n * (i % 2) for i in range(start, start + n)] for start in (0, n))
        for _ in range(half.bit_length()):
            pairs = list(zip(found[:half], found[half:], strict=True))
            found = [self._shuffle(a, b, lanes) for a, b in pairs for lanes in (low, high)]
        return found


def batched(values: Sequence[Any], n: int) -> list[Sequence[Any]]:
    """Return ``values`` in parts of ``n``."""
    return [values[start : start + n] for start in range(0, len(values), n)]


def compiled_code(emit: Callable[..., None]) -> Any:
    """Return a function of compiled code of a base, arrays and integers.

    The base is a tuple of so many integers, so that code is compiled for each base when it is first used. Arrays and
    integers are tuples as well; ``emit`` gets the base, and addresses and values one by one.
    """

    def typed(typing_context: Any, base: Any, arrays: Any, numbers: Any) -> Any:
        def lower(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kinds, counted = signature.args[1].types, signature.args[2].types
            given, counts = (cgutils.unpack_tuple(builder, part) for part in args[1:])
            data = [
                context.make_array(k)(context, builder, array).data for k, array in zip(kinds, given, strict=True)
            ]
            values = [context.cast(builder, v, k, types.intp) for k, v in zip(counted, counts, strict=True)]
            # callers that took this code in would be compiled for as long again
            builder.function.attributes.add("noinline")
            emit(builder, len(signature.args[0]), *data, *values)
            return context.get_dummy_value()

        return types.void(base, arrays, numbers), lower

    return intrinsic(typed)


def by_lanes(emit: Callable[..., None]) -> Callable[..., None]:
    """Return code of a level for any stride: the most lanes that fill it, of those there is code for."""

    def choose(builder: Any, base: int, *given: Any) -> None:
        stride, widths = given[-2], WIDTHS[base]
        for width, wider in zip(widths, (None, *widths), strict=False):
            fits = _divides(builder, width, stride)
            if wider is not None:
                fits = builder.and_(fits, builder.not_(_divides(builder, wider, stride)))
            with builder.if_then(fits):
                emit(Code(builder, width), base, *given)

    return choose


def _divides(builder: Any, width: int, stride: Any) -> Any:
    rest = builder.and_(stride, ir.Constant(_INT, width - 1))
    return builder.icmp_signed("==", rest, ir.Constant(_INT, 0))


def _level(code: Code, base: int, source: Any, target: Any, weights: Any, *numbers: Any) -> None:
    source_at, source_pitch, target_at, target_pitch, weights_at, stride, n_rows = numbers
    with code.steps(stride, code.lanes) as place:
        factors = code.factors(weights, weights_at, place, stride, base)
        with code.rows(n_rows) as row:
            x = code.group(source, code.row(source_at, source_pitch, row, place), stride, base)
            start = code.row(target_at, target_pitch, row, place)
            for i in range(base):
                code.store(code.dot(factors[i], x), target, code.at(start, code.times(stride, i)))


def _level_backward(code: Code, base: int, source: Any, grads: Any, weights: Any, sums: Any, *numbers: Any) -> None:
    source_at, source_pitch, grads_at, grads_pitch, weights_at, stride, n_rows = numbers
    totals = [[cgutils.alloca_once(code.builder, code.kind) for _ in range(base)] for _ in range(base)]
    with code.steps(stride, code.lanes) as place:
        code.clear(totals)
        with code.rows(n_rows) as row:
            x = code.group(source, code.row(source_at, source_pitch, row, place), stride, base)
            g = code.group(grads, code.row(grads_at, grads_pitch, row, place), stride, base)
            for i, j in itertools.product(range(base), repeat=2):
                code.add(totals[i][j], g[i], x[j])
        for i in range(base):
            stored = code.interleaved([code.builder.load(total) for total in totals[i]])
            code.add_stored(stored, sums, code.weights_place(weights_at, place, stride, i, base))
        factors = code.factors(weights, weights_at, place, stride, base)
        with code.rows(n_rows) as row:
            start = code.row(grads_at, grads_pitch, row, place)
            g = code.group(grads, start, stride, base)
            for j in range(base):
                total = code.dot([factors[i][j] for i in range(base)], g)
                code.store(total, grads, code.at(start, code.times(stride, j)))


# Applies one level to ``base * stride`` positions of rows; target may be source. Arrays: source, target, weights.
# Numbers: place and pitch of source, and of target, place of weights, stride, number of rows.
level: Any = compiled_code(by_lanes(_level))
# Turns gradients by a level's result into those by its input, in place, and adds to gradients by weights. Arrays: the
# level's input, gradients, weights, gradients by weights. Numbers: as for `level`, of input and gradients.
level_backward: Any = compiled_code(by_lanes(_level_backward))


class Rotation:
    """A level within ``n_vectors`` vectors: position p gets, d steps further in its group, what stands there.

    Term d of vector v takes its inputs from ``sources(v, d)``, and its weights from ``weights(v, d)``.
    """

    def __init__(self, base: int, stride: int, n_vectors: int) -> None:
        self.base, self.stride, self.n_vectors = base, stride, n_vectors

    def _digit(self, position: int) -> int:
        return position // self.stride % self.base

    def _positions(self, vector: int) -> range:
        return range(LANES * vector, LANES * (vector + 1))

    def sources(self, vector: int, d: int) -> list[int]:
        """Positions whose inputs go into the positions of a vector."""
        return [
            p + ((self._digit(p) + d) % self.base - self._digit(p)) * self.stride for p in self._positions(vector)
        ]

    def weights(self, vector: int, d: int) -> list[int]:
        """Places of weights in [lanes, base] of a vector."""
        return [
            lane * self.base + (self._digit(p) + d) % self.base for lane, p in enumerate(self._positions(vector))
        ]

    def stored(self, vector: int) -> list[list[int]]:
        """For each vector of what is stored as [lanes, base]: lane and term, as ``d * LANES + lane``."""
        places = {}
        for d in range(self.base):
            for lane, place in enumerate(self.weights(vector, d)):
                places[place] = d * LANES + lane
        return [[places[LANES * part + lane] for lane in range(LANES)] for part in range(self.base)]


class Tail:
    """Code of the last levels, whose strides are smaller than a vector, on ``n_vectors`` vectors at a time."""

    def __init__(self, base: int, strides: Sequence[int], n_vectors: int) -> None:
        self.base, self.n_vectors = base, n_vectors
        self.levels = [Rotation(base, stride, n_vectors) for stride in strides]

    def factors(self, code: Code, weights: Any, weights_at: Any, weights_pitch: Any) -> list[list[list[Any]]]:
        """Return weights as vectors, for each level, vector and term."""
        found = []
        for number, rotation in enumerate(self.levels):
            at = code.at(weights_at, code.times(weights_pitch, number))
            stored = [
                [code.load(weights, code.at(at, LANES * (self.base * v + part))) for part in range(self.base)]
                for v in range(self.n_vectors)
            ]
            found.append(
                [
                    [code.pick(parts, rotation.weights(v, d)) for d in range(self.base)]
                    for v, parts in enumerate(stored)
                ]
            )
        return found

    def inputs(self, code: Code, rotation: Rotation, x: Sequence[Any]) -> list[list[Any]]:
        """Return what each term of each vector takes of ``x``."""
        return [[code.pick(x, rotation.sources(v, d)) for d in range(self.base)] for v in range(self.n_vectors)]

    def loaded(self, code: Code, data: Any, place: Any) -> list[Any]:
        """Return the vectors from a place on."""
        return [code.load(data, code.at(place, LANES * v)) for v in range(self.n_vectors)]

    def forward(self, code: Code, source: Any, start: Any, target: Any, weights: Any, *numbers: Any) -> None:
        """Emit code that applies the levels and adds what rows started from."""
        *ends, weights_at, weights_pitch, n_positions, adds, n_rows = numbers
        with code.steps(n_positions, LANES * self.n_vectors) as place:
            at = code.at(weights_at, code.times(place, self.base))
            factors = self.factors(code, weights, at, weights_pitch)
            with code.rows(n_rows) as row:
                source_at, start_at, target_at = self._places(code, ends, row, place)
                x = self.loaded(code, source, source_at)
                for rotation, factor in zip(self.levels, factors, strict=True):
                    inputs = self.inputs(code, rotation, x)
                    x = [code.dot(factor[v], inputs[v]) for v in range(self.n_vectors)]
                for v, first in enumerate(self.loaded(code, start, start_at)):
                    added = code.builder.select(code.is_set(adds), first, code.zero)
                    code.store(code.plus(x[v], added), target, code.at(target_at, LANES * v))

    def backward(
        self, code: Code, source: Any, grads: Any, target: Any, weights: Any, sums: Any, *numbers: Any
    ) -> None:
        """Emit code that turns gradients by the result into those by the input of the levels."""
        *ends, weights_at, weights_pitch, n_positions, n_rows = numbers
        n_totals = len(self.levels) * self.n_vectors * self.base
        flat = [cgutils.alloca_once(code.builder, code.kind) for _ in range(n_totals)]
        totals = [list(batched(part, self.base)) for part in batched(flat, self.n_vectors * self.base)]
        with code.steps(n_positions, LANES * self.n_vectors) as place:
            at = code.at(weights_at, code.times(place, self.base))
            factors = self.factors(code, weights, at, weights_pitch)
            code.clear([flat])
            with code.rows(n_rows) as row:
                source_at, grads_at, target_at = self._places(code, ends, row, place)
                x, g = self.loaded(code, source, source_at), self.loaded(code, grads, grads_at)
                for v, value in enumerate(self._row_backward(code, x, g, factors, totals)):
                    code.store(value, target, code.at(target_at, LANES * v))
            self._store_totals(code, totals, sums, at, weights_pitch)

    @staticmethod
    def _places(code: Code, ends: Sequence[Any], row: Any, place: Any) -> list[Any]:
        return [code.row(at, pitch, row, place) for at, pitch in zip(ends[::2], ends[1::2], strict=True)]

    def _row_backward(self, code: Code, x: list[Any], g: list[Any], factors: Any, totals: Any) -> list[Any]:
        """Add one row's part to ``totals``, and return the gradients by ``x``."""
        inputs = []
        for rotation, factor in zip(self.levels, factors, strict=True):
            inputs.append(self.inputs(code, rotation, x))
            x = [code.dot(factor[v], inputs[-1][v]) for v in range(self.n_vectors)]
        for number in reversed(range(len(self.levels))):
            rotation = self.levels[number]
            for v in range(self.n_vectors):
                for d in range(self.base):
                    code.add(totals[number][v][d], g[v], inputs[number][v][d])
            g = [self._gathered(code, rotation, factors[number], g, v) for v in range(self.n_vectors)]
        return g

    def _gathered(self, code: Code, rotation: Rotation, factor: Any, g: list[Any], vector: int) -> Any:
        """Return the gradients by one vector of a level's input: what it gave to each term comes back."""
        total = None
        for d in range(self.base):
            # the position that takes term d from here stands d steps before
            wanted = rotation.sources(vector, -d)
            used = {place // LANES for place in wanted}
            terms = [code.product(factor[v][d], g[v]) if v in used else code.zero for v in range(self.n_vectors)]
            total = code.plus(total, code.pick(terms, wanted))
        return total

    def _store_totals(self, code: Code, totals: Any, sums: Any, at: Any, weights_pitch: Any) -> None:
        for number, rotation in enumerate(self.levels):
            for v in range(self.n_vectors):
                terms = [code.builder.load(total) for total in totals[number][v]]
                stored = [code.pick(terms, wanted) for wanted in rotation.stored(v)]
                place = code.at(at, code.times(weights_pitch, number), LANES * self.base * v)
                code.add_stored(stored, sums, place)


# the tails there is code for; their number in its tuple, counted from 1, is how loops name one
TAILS = {
    2: (Tail(2, (8, 4, 2, 1), 1),),
    4: (Tail(4, (4, 1), 1), Tail(4, (8, 2, 1), 2), Tail(4, (12, 3, 1), 3)),
    8: (Tail(8, (1,), 1),),
    16: (Tail(16, (1,), 1),),
}


def tail_number(base: int, size: int, strides: Sequence[int]) -> tuple[int, int]:
    """Return which tail of `TAILS` ends a transform, and how many levels it has; both 0 where none does."""
    for number, tail in enumerate(TAILS[base], 1):
        ends = tuple(rotation.stride for rotation in tail.levels)
        if tuple(strides[-len(ends) :]) == ends and size % (LANES * tail.n_vectors) == 0:
            return number, len(ends)
    return 0, 0


def _by_tail(way: str) -> Callable[..., None]:
    def choose(builder: Any, base: int, *given: Any) -> None:
        *rest, wanted = given
        for number, tail in enumerate(TAILS[base], 1):
            with builder.if_then(builder.icmp_signed("==", wanted, ir.Constant(_INT, number))):
                getattr(tail, way)(Code(builder), *rest)

    return choose


# Applies the last levels, and adds what rows started from. Arrays: source, start, target, weights. Numbers: place and
# pitch of source, start and target, place of weights and distance of their levels, number of positions, 1 to add the
# start, number of rows, number of the tail.
tail: Any = compiled_code(_by_tail("forward"))
# Turns gradients by the last levels' result into those by their input. Arrays: source, gradients, target, weights,
# gradients by weights. Numbers: as for `tail`, of source, gradients and target, without the 1.
tail_backward: Any = compiled_code(_by_tail("backward"))

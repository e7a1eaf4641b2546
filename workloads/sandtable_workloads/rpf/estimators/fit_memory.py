"""Whether memory has room for a fit, asked before it begins."""

from __future__ import annotations

from typing import Any, cast, get_args

from sandtable import units
from sandtable.errors import DoesNotFit
from sandtable.system import limits
from sandtable_workloads.rpf import rpf_memory
from sandtable_workloads.rpf.rpf_parameters import Rpf, Variant

# share of the memory that this process may use which a fit may take
FREE_FRAC = 0.9


def check(
    model: Any, *, users: int, items: int, events: int, edges: int | None = None, otherwise: str | None = None
) -> None:
    """Refuse a fit for which the memory of this process is too small.

    Args:
        model: An estimator, whose components and type count.
        users: U.
        items: P.
        events: N, of those that are held at once.
        edges: E, of models that are given some.
        otherwise: What else to do, as a sentence; None: to fit by batches, where the model can.

    Raises:
        DoesNotFit: with how much it needs, and what fits.
    """
    name = type(model).__name__.lower()
    own_clock = any(getattr(model, of, None) is not None for of in ("user_features", "item_features"))
    least = "hrpf" if edges is None else "srpf"  # what every variant holds that excites
    counts = Rpf.model_construct(
        variant=cast("Variant", name if name in get_args(Variant) and not own_clock else least),
        users=users,
        items=items,
        events=max(1, events),
        components=model.n_components,
        precision=model.dtype,
        followees=0.0 if edges is None else edges / users,
        ranks=model.n_ranks,
    )
    there = FREE_FRAC * limits.memory_bytes()
    needed = sum(rpf_memory.held(counts).values())
    if needed <= there:
        return
    smaller = rpf_memory.fitting(counts, there).replace("precision=", "dtype=")
    advice = [f"take {smaller}"] if smaller else []
    if otherwise is not None or name in ("pf", "hpf", "hrpf"):
        advice.append(otherwise or "fit by batches of users (fit_stochastic, --stochastic), which holds few events")
    raise DoesNotFit(
        f"the fit needs {units.format_bytes(needed)} and {units.format_bytes(there)} are there: "
        + (", or ".join(advice) or "no smaller setting fits, take fewer events, users or items")
    )

"""Recurrent Poisson factorization: a recommender of events in time, and what fitting it costs on any machine.

The public names are imported from here, each when it is first used: `HRPF().fit(read_events("plays.tsv"))`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sandtable_workloads.rpf.estimators.dynamic_factorization import DRPF, DSRPF
    from sandtable_workloads.rpf.estimators.item_excitation import IIRPF, XIIRPF
    from sandtable_workloads.rpf.estimators.recurrent_factorization import HRPF, SRPF
    from sandtable_workloads.rpf.estimators.static_factorization import HPF, PF
    from sandtable_workloads.rpf.evaluated.evaluation_harness import evaluate
    from sandtable_workloads.rpf.evaluated.held_out_events import HeldOut
    from sandtable_workloads.rpf.evaluated.scored_estimators import of_estimator
    from sandtable_workloads.rpf.events.event_files import FileOptions, read_events
    from sandtable_workloads.rpf.events.event_split import EventSplit, chronological_split, split_at
    from sandtable_workloads.rpf.events.event_store import EventStore
    from sandtable_workloads.rpf.events.event_table import EventTable
    from sandtable_workloads.rpf.events.generated_events import GeneratedEvents
    from sandtable_workloads.rpf.events.grouped_files import group_events
    from sandtable_workloads.rpf.events.simulated_events import KnownParameters, simulate, thinned
    from sandtable_workloads.rpf.events.social_edges import SocialEdges, read_edges
    from sandtable_workloads.rpf.scaled.stochastic_fit import StochasticOptions, fit_stochastic

__all__ = [
    "DRPF",
    "DSRPF",
    "HPF",
    "HRPF",
    "IIRPF",
    "PF",
    "SRPF",
    "XIIRPF",
    "EventSplit",
    "EventStore",
    "EventTable",
    "FileOptions",
    "GeneratedEvents",
    "HeldOut",
    "KnownParameters",
    "SocialEdges",
    "StochasticOptions",
    "chronological_split",
    "evaluate",
    "fit_stochastic",
    "group_events",
    "of_estimator",
    "read_edges",
    "read_events",
    "simulate",
    "split_at",
    "thinned",
]

# these rooms hold no workload: predicting needs none of them
FAST_PATH = ("estimators", "evaluated", "events", "rpf_run", "rpf_use", "scaled")

_LIES_IN = {
    "estimators.dynamic_factorization": ("DRPF", "DSRPF"),
    "estimators.item_excitation": ("IIRPF", "XIIRPF"),
    "estimators.recurrent_factorization": ("HRPF", "SRPF"),
    "estimators.static_factorization": ("HPF", "PF"),
    "evaluated.evaluation_harness": ("evaluate",),
    "evaluated.held_out_events": ("HeldOut",),
    "evaluated.scored_estimators": ("of_estimator",),
    "events.event_files": ("FileOptions", "read_events"),
    "events.event_split": ("EventSplit", "chronological_split", "split_at"),
    "events.event_store": ("EventStore",),
    "events.event_table": ("EventTable",),
    "events.generated_events": ("GeneratedEvents",),
    "events.grouped_files": ("group_events",),
    "events.simulated_events": ("KnownParameters", "simulate", "thinned"),
    "events.social_edges": ("SocialEdges", "read_edges"),
    "scaled.stochastic_fit": ("StochasticOptions", "fit_stochastic"),
}
_MODULE_OF = {name: module for module, names in _LIES_IN.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)

"""Fitted models as files: one ``.npz`` of named arrays and a JSON header, which grows beside its name and is renamed.

A model is kept with the events that it was fitted to: what it predicts depends on them.
"""

from __future__ import annotations

import importlib
import json
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sandtable.errors import ConfigError
from sandtable_kernels.poisson.event_pairs import EventPairs
from sandtable_workloads.rpf.estimators.fit_checkpoint import read_arrays, write_arrays
from sandtable_workloads.rpf.estimators.fit_loop import restore_state, state_arrays
from sandtable_workloads.rpf.estimators.observed_events import IdIndex, ObservedEvents

if TYPE_CHECKING:
    from sandtable_workloads.rpf.estimators.poisson_estimator import PoissonEstimator

SCHEMA = 1
# how ids are read that are no plain array
_READ: dict[str, Callable[[str], Any]] = {"text": str, "uuid": uuid.UUID, "json": json.loads}
_MODELS = __name__.rpartition(".")[0]
Array = NDArray[Any]


def save_model(model: PoissonEstimator, path: str | Path) -> None:
    """Write a fitted model.

    Raises:
        NotFitted: there is nothing to save.
        ConfigError: ids are of a type that a file cannot keep.
    """
    pairs, edges = model.observed_.pairs, model._edge_ids()
    arrays = {f"state.{name}": array for name, array in state_arrays(model.state_).items()}
    arrays |= {"user": pairs.event_user, "item": pairs.event_item, "time": pairs.time}
    arrays["start"] = model.observed_.start
    arrays |= {f"kept.{name}": getattr(model, name) for name in model.also_kept}
    header: dict[str, Any] = {
        "sandtable_model": SCHEMA,
        "module": type(model).__module__,
        "model": type(model).__name__,
        "period": model.period_,
        "kept_from": model.kept_from_,
        "origin": None if model.origin_ is None else str(model.origin_),
        "elbo": model.elbo_,
        "held_out": model.held_out_,
        "converged": model.converged_,
    }
    header["parameters"], given = parameters_of(model)
    arrays |= {f"parameter.{name}": value for name, value in given.items()}
    for name, ids in (("user_ids", model.user_ids_), ("item_ids", model.item_ids_)):
        arrays[name], header[name] = plain_ids(ids)
    if edges is not None:
        # by place, as events are
        arrays |= {"follower": model.user_index_.places(edges[0]), "followed": model.user_index_.places(edges[1])}
    write_arrays(Path(path), header, arrays)


def load_model(path: str | Path) -> PoissonEstimator:
    """Return the model that `save_model` wrote.

    Raises:
        ConfigError: the file is missing, damaged, or holds no model of this package.
    """
    header, arrays = read_arrays(Path(path))
    if header.get("sandtable_model") != SCHEMA or not str(header.get("module")).startswith(f"{_MODELS}."):
        raise ConfigError("holds no model that this version can read", file=str(path))
    kind = getattr(importlib.import_module(header["module"]), header["model"])
    given = {name.partition(".")[2]: value for name, value in arrays.items() if name.startswith("parameter.")}
    model: PoissonEstimator = kind(**header["parameters"], **given)
    users, items = (_ids(arrays[name], header[name]) for name in ("user_ids", "item_ids"))
    model.user_index_, model.item_index_ = IdIndex(users), IdIndex(items)
    model.origin_ = None if header["origin"] is None else np.datetime64(header["origin"])
    edges = (users[arrays["follower"]], users[arrays["followed"]]) if "follower" in arrays else None
    model.period_ = tuple(header["period"])
    model.kept_from_ = header["kept_from"]
    pairs = EventPairs.of(arrays["user"], arrays["item"], arrays["time"], users.size, items.size)
    model.observed_ = ObservedEvents(pairs, arrays["start"], model.period_[1], model._edges(edges))
    model._prepare(model.observed_)
    for name in model.also_kept:
        setattr(model, name, arrays[f"kept.{name}"])
    model.state_ = model._begin(model.observed_, np.random.default_rng(model.random_state))
    restore_state(
        model.state_, {name.partition(".")[2]: array for name, array in arrays.items() if name.startswith("state.")}
    )
    model.elbo_, model.held_out_, model.converged_ = header["elbo"], header["held_out"], header["converged"]
    model.n_iter_ = len(model.elbo_)
    model._publish(model.state_)
    return model


def parameters_of(model: PoissonEstimator) -> tuple[dict[str, Any], dict[str, Array]]:
    """Return hyperparameters as JSON has them, and those that are arrays.

    Raises:
        ConfigError: one that is neither.
    """
    given = model.get_params()
    arrays = {name: value for name, value in given.items() if isinstance(value, np.ndarray)}
    return {name: _as_text(name, value) for name, value in given.items() if name not in arrays}, arrays


def _as_text(name: str, value: Any) -> Any:
    """Return a hyperparameter as JSON has it; dates as text and mappings as two columns, which are taken as well."""
    if isinstance(value, np.generic) and not isinstance(value, np.datetime64):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.datetime64) or hasattr(value, "isoformat"):
        return str(value)
    if isinstance(value, Mapping):
        value = list(value), list(value.values())
    if isinstance(value, list | tuple):
        return [_as_text(name, each) for each in value]
    raise ConfigError(f"{name} is a {type(value).__name__}, which a file of a model cannot keep")


def plain_ids(ids: Array) -> tuple[Array, str]:
    """Return ids as an array without objects, and what they were.

    Raises:
        ConfigError: ids of a type that a file cannot keep.
    """
    if ids.dtype != object:
        return ids, "plain"
    kinds = {type(value) for value in ids.tolist()}
    if kinds <= {str}:
        return ids.astype(np.str_), "text"
    if kinds <= {str, int, float, bool}:
        return np.array([json.dumps(value) for value in ids.tolist()]), "json"
    if kinds == {uuid.UUID}:
        return np.array([str(value) for value in ids.tolist()]), "uuid"
    names = ", ".join(sorted(kind.__name__ for kind in kinds))
    raise ConfigError(f"a file keeps ids that are numbers and texts, or all UUIDs, not {names}")


def _ids(stored: Array, kind: str) -> Array:
    if kind == "plain":
        return stored
    values = stored.tolist()
    made = np.empty(len(values), object)
    made[:] = list(map(_READ.get(kind, str), values))
    return made

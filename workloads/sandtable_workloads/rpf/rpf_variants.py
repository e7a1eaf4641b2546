"""Which estimator fits which variant."""

from __future__ import annotations

from typing import Any

from sandtable_kernels.poisson.feature_clock import named_features
from sandtable_workloads.rpf.estimators.poisson_estimator import PoissonEstimator
from sandtable_workloads.rpf.rpf_parameters import Rpf


def estimators() -> dict[str, type[PoissonEstimator]]:
    """Return the estimator of each variant."""
    from sandtable_workloads.rpf.estimators.dynamic_factorization import DRPF, DSRPF
    from sandtable_workloads.rpf.estimators.item_excitation import IIRPF, XIIRPF
    from sandtable_workloads.rpf.estimators.recurrent_factorization import HRPF, SRPF
    from sandtable_workloads.rpf.estimators.static_factorization import HPF, PF

    return {kind.__name__.lower(): kind for kind in (PF, HPF, HRPF, SRPF, DRPF, DSRPF, IIRPF, XIIRPF)}


def estimator_of(p: Rpf, *, n_threads: int, seed: int) -> PoissonEstimator:
    """Return the estimator of a workload's parameters."""
    options: dict[str, Any] = {}
    if p.dynamic:
        table, period = named_features(p.features)
        options = {"user_features": table, "feature_period": period}
    if p.n_clusters:
        options = {"clusters": p.n_clusters}
    kind = estimators()[p.variant]
    return kind(n_components=p.components, dtype=p.precision, n_threads=n_threads, random_state=seed, **options)

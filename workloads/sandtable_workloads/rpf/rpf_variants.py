"""Which estimator fits which variant."""

from __future__ import annotations

from sandtable_workloads.rpf.estimators.poisson_estimator import PoissonEstimator
from sandtable_workloads.rpf.rpf_parameters import Rpf, Variant


def estimators() -> dict[Variant, type[PoissonEstimator]]:
    """Return the estimator of each variant."""
    from sandtable_workloads.rpf.estimators.dynamic_factorization import DRPF, DSRPF
    from sandtable_workloads.rpf.estimators.item_excitation import IIRPF, XIIRPF
    from sandtable_workloads.rpf.estimators.recurrent_factorization import HRPF, SRPF
    from sandtable_workloads.rpf.estimators.static_factorization import HPF, PF

    recurrent: dict[Variant, type[PoissonEstimator]] = {"hrpf": HRPF, "srpf": SRPF, "drpf": DRPF, "dsrpf": DSRPF}
    return {"pf": PF, "hpf": HPF, **recurrent, "iirpf": IIRPF, "xiirpf": XIIRPF}


def estimator_of(p: Rpf, *, n_threads: int, seed: int) -> PoissonEstimator:
    """Return the estimator of a workload's parameters."""
    kind = estimators()[p.variant]
    return kind(n_components=p.components, dtype=p.precision, n_threads=n_threads, random_state=seed)

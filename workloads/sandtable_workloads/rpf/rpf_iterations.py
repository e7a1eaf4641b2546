"""How many iterations a whole fit takes: what fits of generated events took, by variant, with an interval.

``python -m sandtable_workloads.rpf.rpf_iterations`` fits them again and prints the file.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

import numpy as np

from sandtable import yaml_files
from sandtable_workloads.rpf.rpf_parameters import Rpf, Variant

FILE = Path(__file__).with_name("iterations.yaml")


@lru_cache(maxsize=1)
def kept() -> dict[str, Any]:
    """Return the tolerance, the data (users, items, events, components), and what each fit took, by variant."""
    return dict(yaml_files.plain(yaml_files.read_yaml(FILE)))


def iterations_of(p: Rpf) -> tuple[float, float, float]:
    """Return the low end, the median and the high end of the iterations of a fit until it converges."""
    if p.iterations_to_converge is not None:
        return p.iterations_to_converge, p.iterations_to_converge, p.iterations_to_converge
    took = kept()["iterations"][p.variant]
    return float(min(took)), float(np.median(took)), float(max(took))


def taken(variant: Variant, data: Sequence[int], tol: float, seed: int) -> int:
    """Return the iterations of one fit of generated events: users, items, events, components."""
    from sandtable_workloads.rpf.rpf_run import generated
    from sandtable_workloads.rpf.rpf_variants import estimator_of

    users, items, events, components = data
    p = Rpf(variant=variant, users=users, items=items, events=events, components=components)
    made = generated(p, seed)
    model: Any = estimator_of(p, n_threads=2, seed=seed).set_params(tol=tol)
    return int(model.fit(made.table(), made.edges() if p.social else None).n_iter_)


def main() -> None:
    """Write what fits take now to stdout, as the file holds it."""
    found, put = kept(), sys.stdout.write
    put(f"tolerance: {found['tolerance']:f}\ndata:\n")
    put("".join(f"  - {row}\n" for row in found["data"]) + "iterations:\n")
    for variant in get_args(Variant):
        took = [taken(variant, row, found["tolerance"], seed) for seed, row in enumerate(found["data"])]
        put(f"  {variant}: {took}\n")


if __name__ == "__main__":
    main()

"""How many iterations a whole fit takes: what fits of generated events took, by variant, with an interval."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from sandtable import yaml_files
from sandtable_workloads.rpf.rpf_parameters import Rpf

FILE = Path(__file__).with_name("iterations.yaml")


@lru_cache(maxsize=1)
def measured() -> dict[str, Any]:
    """Return what fits took: variant -> low, median and high, at the tolerance that is named."""
    return dict(yaml_files.plain(yaml_files.read_yaml(FILE)))


def iterations_of(p: Rpf) -> tuple[float, float, float]:
    """Return the low end, the median and the high end of the iterations of a fit until it converges."""
    if p.iterations_to_converge is not None:
        return (p.iterations_to_converge,) * 3
    found = measured()["iterations"][p.variant]
    return float(found["low"]), float(found["median"]), float(found["high"])

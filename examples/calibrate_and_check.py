"""Measure this machine, predict a small model on it, run it for real, and compare."""

import sandtable

sandtable.calibrate(quick=True)
found = sandtable.check("flash_demo", {"parameters.geometry": "opt_mini"})
print(found.to_frame()[["metric", "predicted", "measured", "error_frac", "covered"]].head(4))

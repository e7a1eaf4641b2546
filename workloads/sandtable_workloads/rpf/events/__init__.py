"""Events with users, items and times: tables with their checks, files, splits, simulated and generated ones."""

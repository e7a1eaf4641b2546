"""From measurements to the ``fitted`` block of a device file.

Real operations are timed over a grid, and the constants of laws are fitted to that. Nothing is ever fitted to the time
of a whole workload: those runs are the test, in `sandtable.runs`.
"""

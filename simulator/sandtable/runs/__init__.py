"""One scenario: predict it, run it for real, compare the two, and keep all of it in a folder.

What a run took is read here from clocks, counters and allocators, energy and GPUs included. Timing single operations to
fit a device belongs to `sandtable.calibration`, many configurations to `sandtable.studies`.
"""

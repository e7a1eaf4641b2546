"""Cost models: a demand, a device and its software in, seconds with an interval out.

Pure functions that work on arrays. No clock, no queue (`sandtable.engine`), no file and no fitting
(`sandtable.calibration`); times, rates and efficiencies are numbers of device files, not of this code.
"""

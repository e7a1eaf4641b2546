"""One law per file: a device, its software and columns of a demand in, seconds out.

A law has few constants with a physical meaning. Their values lie in device files, and what fits them in
`sandtable.calibration.fit`.
"""

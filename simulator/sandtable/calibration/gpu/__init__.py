"""GPUs: recordings of what was timed, their data sheets, and the machine that is fitted to them.

What times a GPU is brought by a package of kernels (`sandtable.demand.instruments`); no CUDA here.
"""

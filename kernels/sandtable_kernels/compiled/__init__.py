"""What numba compiles. Importing these modules needs numba, so looking for kernels leaves them alone."""

"""What numba compiles. Importing these modules needs numba, so looking for kernels leaves them alone."""

from sandtable.system import caches

# numba looks for a place to keep what it compiled as soon as it is imported
caches.provide()

"""The seam of a workload, and the scenarios that name one."""

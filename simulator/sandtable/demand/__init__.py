"""Demands: what a workload asks of a machine, with no time in it."""

"""Adapters of published operator timings. Those of a whole workload lie beside the workload."""

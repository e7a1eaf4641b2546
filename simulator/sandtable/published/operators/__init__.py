"""Adapters of published operator timings that belong to no workload; the others lie beside their workload."""

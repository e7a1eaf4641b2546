"""Workloads, a room each: parameters, plan or process, execution, and adapters of published rows beside them.

What several of them share of a model lies in `sandtable_workloads.transformer`; what any workload could need belongs to
the core.
"""

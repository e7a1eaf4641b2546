"""Questions over many configurations of one scenario: axes, constraints, an objective.

How a single one is predicted belongs to `sandtable.runs`, and what a workload may choose among to the workload.
"""

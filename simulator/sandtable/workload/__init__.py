"""The seam of a workload, and the scenario that names one with its parameters and machine.

No workload lies here, and none is named: they are classes of installed packages. What is done with one scenario belongs
to `sandtable.runs`, with many to `sandtable.studies`.
"""

"""Results for people: tables, listings, HTML pages, plots with their data, Perfetto timelines.

Nothing is computed here that a result does not hold already.
"""

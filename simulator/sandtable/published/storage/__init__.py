"""Adapters of published storage measurements, and the names that their sources give to drives."""

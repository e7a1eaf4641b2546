"""Adapters of published storage measurements."""

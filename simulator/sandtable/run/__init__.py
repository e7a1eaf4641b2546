"""Predict, measure, check, compare: what happens to one scenario, and the folder that keeps it."""

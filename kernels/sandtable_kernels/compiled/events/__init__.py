"""Compiled loops over events: putting them in order, what excites them, and rows of Gamma factors."""

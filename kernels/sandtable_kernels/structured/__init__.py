"""Matrices with structure: the butterfly transform, and others that hold fewer weights than a dense matrix."""

"""Least squares: from timed points to fitted constants with intervals. Knows no machine and no file of rows."""

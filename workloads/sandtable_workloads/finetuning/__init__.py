"""Training a part of the weights beside frozen ones."""

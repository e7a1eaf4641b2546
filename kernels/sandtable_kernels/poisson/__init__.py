"""Poisson factorization of events with times: events in order, Gamma factors, passes over them, and their time."""

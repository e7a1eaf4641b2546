"""Recurrent Poisson factorization: a recommender of events in time, and what fitting it costs on any machine."""

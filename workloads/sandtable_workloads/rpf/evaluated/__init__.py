"""How good a recommender of events is: ranks, returning times, rivals in the same harness, and a study over seeds."""

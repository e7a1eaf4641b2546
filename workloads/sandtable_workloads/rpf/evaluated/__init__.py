"""How good a recommender of events is: ranks, returning times, rivals in the same harness, and a study over seeds."""

# need numba, or are a command of their own: looking for workloads leaves them alone
FAST_PATH = (
    "contenders",
    "evaluation_harness",
    "held_out_events",
    "ranking_metrics",
    "recurrence_study",
    "replayed_state",
    "returning_times",
    "rivals",
    "scored_estimators",
    "study_cases",
    "study_tables",
)

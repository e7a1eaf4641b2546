"""Does PPO do better against a soup than against the model it begins at? Many alignments, and tables of them."""

# a command of its own: looking for workloads leaves it alone
FAST_PATH = ("soup_study",)

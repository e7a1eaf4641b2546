"""Training for real with PyTorch: images that are generated, a loop that resumes, and the comparison of structures."""

# need PyTorch, or are a command of their own: looking for workloads leaves them alone
FAST_PATH = ("glyph_training", "run_glyphs")

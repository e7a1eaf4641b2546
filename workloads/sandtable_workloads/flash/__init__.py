"""Inference of a model whose feed-forward weights live in flash ("LLM in a flash", arXiv 2312.11514)."""

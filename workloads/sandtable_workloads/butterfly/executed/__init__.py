"""Training for real with PyTorch: images that are generated, a loop that resumes, and the comparison of structures."""

"""Real operations, one per file: what each costs, what it does, and what is right."""

"""Published measurements: one adapter per file, each row scored or counted under a named reason."""

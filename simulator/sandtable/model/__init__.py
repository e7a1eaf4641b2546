"""Cost models: demands and device laws in, seconds with intervals out; pure functions without a clock."""

"""The event engine: machine to resources, plan to trace."""

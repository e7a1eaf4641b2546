"""The command line: each command parses, calls one function, prints, and leaves with an exit code."""

"""The command line: each command parses, calls one function, prints, and leaves with an exit code.

A decision that a script may need too belongs to the room whose function is called.
"""

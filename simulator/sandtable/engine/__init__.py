"""The event engine: what waits for what, who is served when, and what is recorded of it.

The only room that knows SimPy. Times of operations come from `sandtable.model`; what the records mean as metrics is for
`sandtable.runs`.
"""

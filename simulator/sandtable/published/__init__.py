"""Published measurements: one adapter per file, each row scored or counted under a named reason.

`base` holds what an adapter is, `framework` runs adapters over a folder, `scatter` draws the result. Every other module
here is one adapter and is found by itself.
"""

"""Published measurements: one adapter per file, each row scored or counted under a named reason.

Here lies what an adapter is (`adapter`, `operator_rows`), how a folder is scored (`scoring`), and
the adapters of operators and storage that belong to no workload. An adapter that predicts with a workload lies beside
it, in a package called ``published`` with the files that it ships in ``data``; `sandtable.plugins` finds both.
"""

"""The work of each stage, for one partition, without an orchestrator.

Each function takes the services of a pipeline and a partition, refuses with a reason or does the
work, records it in the ledger and returns an Outcome. Dagster's assets are a thin layer above.
"""

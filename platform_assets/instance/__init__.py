"""Parts of the Dagster instance that dagster.yaml names: how runs are queued and launched.

Every process that opens the instance imports them, so they import no more than Dagster.
"""

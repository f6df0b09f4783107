"""The ledger: one SQL database for what neither Dagster nor MLflow can hold."""

from resources.ledger.engine import upgrade
from resources.ledger.records import (
    ArrivalRecord,
    ChampionRecord,
    ScoreRecord,
    VerdictRecord,
    VersionRecord,
)
from resources.ledger.store import Ledger, open_ledger

__all__ = [
    "ArrivalRecord",
    "ChampionRecord",
    "Ledger",
    "ScoreRecord",
    "VerdictRecord",
    "VersionRecord",
    "open_ledger",
    "upgrade",
]

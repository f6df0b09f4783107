"""Digests of small documents; those of tables are the lake's."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any


def canonical_json(document: Any) -> str:
    """JSON with sorted keys and no white space: equal documents, equal text."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), default=str)


def digest_of(document: Any) -> str:
    """SHA-256 of a JSON document, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(document).encode()).hexdigest()


def combine(digests: Mapping[str, str] | Iterable[tuple[str, str]]) -> str:
    """One digest over named digests, independent of their order."""
    return digest_of(sorted(dict(digests).items()))

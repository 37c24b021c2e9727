"""JSON in which a name that comes twice is an error.

Readers differ in which of two equal names they take, so such a document may show one thing and have another verified.
"""

import json
from typing import Any


def strict_json(text: bytes | str) -> Any:
    """Parse JSON (RFC 8259). Raises ValueError for what is none, and for an object with one name twice."""
    return json.loads(text, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("an object has one name twice")
    return members

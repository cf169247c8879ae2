"""JSON objects of a run: written with a checksum, which is checked when they are read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from spin_components.errors import IntegrityError
from spin_components.store.digests import digest_json

_CHECKSUM = "checksum"


class StoredTable(dict[str, Any]):
    """A JSON object of a run; a key that it lacks raises IntegrityError with its address."""

    def __init__(self, values: Mapping[str, Any], uri: str) -> None:
        super().__init__(values)
        self._uri = uri

    def __missing__(self, name: str) -> Any:
        raise IntegrityError(
            f"{self._uri} has no {name!r}, found {', '.join(sorted(self)) or 'nothing'}; restore the original, or "
            "delete it to have its step run again"
        )


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """Return a JSON object with its checksum."""
    plain = json.loads(json.dumps(value, allow_nan=False))
    return (json.dumps({**plain, _CHECKSUM: digest_json(plain)}, indent=2, ensure_ascii=False) + "\n").encode()


def parse_json(content: bytes, uri: str) -> dict[str, Any]:
    """Parse the content of a JSON object.

    Args:
        content: as `json_bytes` returns it.
        uri: its address, for the error.

    Raises:
        IntegrityError: it is not JSON, or its checksum differs.
    """
    try:
        value = json.loads(content)
        checksum = value.pop(_CHECKSUM, None) if isinstance(value, dict) else None
        expected = digest_json(value)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{uri} is not JSON ({error}); delete it to have its step run again") from error
    if checksum != expected:
        raise IntegrityError(
            f"{uri} was changed after it was written: its {_CHECKSUM} is {checksum!s:.12}…, expected "
            f"{expected:.12}…. Restore the original, or delete it to have its step run again"
        )
    return StoredTable(value, uri)

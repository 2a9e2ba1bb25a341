"""Small documents with a checksum: what a damaged digit would turn into a lie, and what is as good as missing then."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from taskq.broker.log.batch import crc32c
from taskq.broker.log.files import encode_json


def encode_sealed(document: Mapping[str, Any]) -> bytes:
    """`document` as a JSON text, and the CRC32C of that text."""
    body = json.dumps(document)
    return encode_json({"crc": crc32c(body.encode()), "body": body})


def decode_sealed(raw: bytes) -> Any:
    """The document; None if these bytes are not one as it was written."""
    try:
        outer: Any = json.loads(raw)
        body = outer["body"]
        return json.loads(body) if crc32c(body.encode()) == outer["crc"] else None
    except (ValueError, LookupError, TypeError, AttributeError):
        return None

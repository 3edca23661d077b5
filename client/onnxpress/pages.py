"""Lists of the service, which come a page at a time."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from onnxpress.transport import ApiRequest, Transport

# The largest page that the service gives.
PAGE = 200


def items(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Give what a list holds."""
    return list(document["items"])


def pages(
    transport: Transport, path: str, query: Mapping[str, str | Sequence[str]], limit: int | None = None
) -> Iterator[dict[str, Any]]:
    """Yield what all pages hold; `limit` ends the list."""
    cursor, left = None, limit
    while left is None or left > 0:
        asked: dict[str, str | int | Sequence[str]] = {**query, "limit": min(left or PAGE, PAGE)}
        if cursor:
            asked["cursor"] = cursor
        page = transport.json(ApiRequest("GET", path, query=asked))
        found = items(page)[:left]
        yield from found
        left = None if left is None else left - len(found)
        cursor = page.get("next_cursor")
        if not cursor:
            return

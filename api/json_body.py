"""JSON bodies that say that they are JSON, and hold nothing that cannot be stored and sent again."""

import math
from collections.abc import Iterator
from typing import Any

from fastapi import Depends, Request

from api.dependencies import Context
from api.errors import ApiError, FieldError


async def json_body(request: Request, _context: Context) -> None:
    """Refuse a body that does not say that it is JSON, or says what JSON cannot, after a request without a key."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "Send the body as JSON, with the Content-Type application/json.")
    # FastAPI has read it, or given up: then it says why by itself.
    wrong = next(not_storable(getattr(request, "_json", None)), None)
    if wrong is not None:
        raise ApiError(422, f"{wrong.pointer or 'body'}: {wrong.detail}", errors=[wrong])


def not_storable(document: Any) -> Iterator[FieldError]:
    """Find texts that are none, and numbers that are none: Python's parser takes both, and neither databases nor other parsers do."""
    left = [("", document)]
    while left:
        at, value = left.pop()
        if isinstance(value, str):
            if not _is_text(value):
                yield FieldError(pointer=at, detail="This text holds a NUL or half of a character (a lone surrogate).")
        elif isinstance(value, float):
            if not math.isfinite(value):
                yield FieldError(pointer=at, detail="This is no number that JSON can say.")
        elif isinstance(value, dict):
            if not all(map(_is_text, value)):
                yield FieldError(
                    pointer=at, detail="A name in here holds a NUL or half of a character (a lone surrogate)."
                )
            left += [(f"{at}/{name.replace('~', '~0').replace('/', '~1')}", one) for name, one in value.items()]
        elif isinstance(value, list):
            left += [(f"{at}/{number}", one) for number, one in enumerate(value)]


def _is_text(text: str) -> bool:
    if "\0" in text:
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


JSON_BODY = [Depends(json_body)]

"""What stands for a stored network: its id, `@alias`, or `name@version`."""

import re
from pathlib import Path

from onnxpress.errors import NotFoundError
from onnxpress.pages import items
from onnxpress.problem import Problem
from onnxpress.transport import ApiRequest, Transport

_VERSION = re.compile(r"(?s)(.+)@([1-9][0-9]{0,8})")


def split_version(named: str) -> tuple[str, int] | None:
    """Give name and number of `net@3`; None for what is no version."""
    found = _VERSION.fullmatch(named)
    return None if found is None else (found[1], int(found[2]))


def is_id(text: str, prefix: str) -> bool:
    """Tell the id of something stored from the name of a file."""
    return text.startswith(prefix) and not Path(text).exists()


def is_stored_model(text: str) -> bool:
    """Tell what stands for a stored network from the name of a file."""
    return is_id(text, "mdl_") or is_id(text, "@") or (split_version(text) is not None and not Path(text).exists())


def in_address(transport: Transport, named: str) -> str:
    """Give what stands for a network in an address: for a version the id, as names may hold any sign; raises NotFoundError."""
    version = split_version(named)
    if version is None:
        return named
    query: dict[str, str | float | list[str]] = {
        "name": version[0],
        "version": version[1],
        "state": "ready",
        "limit": 1,
    }
    found = items(transport.json(ApiRequest("GET", "/models", query=query)))
    if not found:
        raise NotFoundError(Problem(f"the service has no model {named}", code="not_found", status=404))
    return str(found[0]["id"])

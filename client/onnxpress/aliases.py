"""Aliases: names that one network has at a time, such as `production`; `@production` stands for the network everywhere."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

from onnxpress.transport import ApiRequest, Transport


class Unsaid:
    """The type of `UNSAID`."""


# Moves an alias whoever has it.
UNSAID: Final = Unsaid()


@dataclass(frozen=True)
class AliasMove:
    """One move of an alias; `model` is None where it was taken away."""

    model: str | None
    rollback: bool
    key: str | None
    note: str | None
    at: str


@dataclass(frozen=True)
class Alias:
    """An alias and the id of the network that has it; its last moves where it was asked for alone, the newest first."""

    name: str
    model: str
    moved_at: str
    history: tuple[AliasMove, ...]
    document: Mapping[str, Any] = field(repr=False)

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """Read the service's JSON."""
        moves = tuple(
            AliasMove(one.get("model"), bool(one["rollback"]), one.get("key"), one.get("note"), str(one["at"]))
            for one in document.get("history") or ()
        )
        return cls(str(document["name"]), str(document["model"]), str(document["moved_at"]), moves, document)


class Aliases:
    """Which network each alias names, and the way back."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self) -> list[Alias]:
        """Give all aliases by name."""
        return [Alias.from_document(one) for one in self._transport.json(ApiRequest("GET", "/aliases"))["items"]]

    def get(self, name: str) -> Alias:
        """Give one with its history; raises NotFoundError."""
        return Alias.from_document(self._transport.json(ApiRequest("GET", f"/aliases/{name}")))

    def move(self, name: str, model: str, *, expected: str | Unsaid | None = UNSAID, note: str | None = None) -> Alias:
        """Have an alias name a network, given by its id, `@alias` or `name@version`.

        With `expected`, the id of the network that has it as far as the caller knows, or None for nobody, it moves only if
        that is still so; else ConflictError.
        """
        return self._asked("PUT", f"/aliases/{name}", {"model": model}, expected, note)

    def roll_back(self, name: str, *, expected: str | Unsaid | None = UNSAID, note: str | None = None) -> Alias:
        """Have an alias name the network that had it before; again, the one before that. Raises ConflictError where there is none."""
        return self._asked("POST", f"/aliases/{name}:rollback", {}, expected, note)

    def remove(self, name: str) -> None:
        """Have an alias name nothing; its history stays."""
        self._transport.fetch(ApiRequest("DELETE", f"/aliases/{name}"))

    def _asked(
        self, method: str, path: str, body: dict[str, Any], expected: str | Unsaid | None, note: str | None
    ) -> Alias:
        body |= {} if isinstance(expected, Unsaid) else {"expected": expected}
        body |= {} if note is None else {"note": note}
        return Alias.from_document(self._transport.json(ApiRequest(method, path, body=body)))

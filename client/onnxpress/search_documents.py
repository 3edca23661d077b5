"""What the service says of a search: its trials, and the front that is left to choose from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from onnxpress.documents import JobStatus
from onnxpress.problem import Problem

Json = Mapping[str, Any]
Minimised = Literal["latency", "size", "memory", "macs"]


@dataclass(frozen=True)
class Trial:
    """A candidate: `point` is what is left of the network, `values` what was measured on samples that do not judge."""

    number: int
    state: str
    level: str
    because: str
    point: Json
    predicted: Json | None
    values: Json | None
    problem: Problem | None
    # Whether its network is kept, and the id that it has once it was picked.
    stored: bool
    model: str | None
    seconds: float
    document: Json = field(repr=False)

    @classmethod
    def from_document(cls, document: Json) -> Self:
        """Read the service's JSON."""
        proposal = document["proposal"]
        return cls(
            number=int(document["number"]),
            state=str(document["state"]),
            level=str(proposal["level"]),
            because=str(proposal["because"]),
            point=proposal["point"],
            predicted=proposal.get("predicted"),
            values=document.get("values"),
            problem=Problem.from_document(document["problem"]) if document.get("problem") else None,
            stored=bool(document.get("stored")),
            model=document.get("model"),
            seconds=float(document.get("seconds") or 0.0),
            document=document,
        )


@dataclass(frozen=True)
class FrontPoint:
    """A candidate that no other one beats in everything; `recipe` makes it again, None until the search has ended."""

    number: int
    level: str
    because: str
    point: Json
    recipe: tuple[Json, ...] | None
    predicted: Json | None
    measured: Json
    stored: bool
    model: str | None
    document: Json = field(repr=False)

    @classmethod
    def from_document(cls, document: Json) -> Self:
        """Read the service's JSON."""
        return cls(
            number=int(document["number"]),
            level=str(document["level"]),
            because=str(document["because"]),
            point=document["point"],
            recipe=None if document.get("recipe") is None else tuple(document["recipe"]),
            predicted=document.get("predicted"),
            measured=document["measured"],
            stored=bool(document.get("stored")),
            model=document.get("model"),
            document=document,
        )


@dataclass(frozen=True)
class Front:
    """What there is to choose from of a search, the least of what it minimises first; `final`: it stays as it is."""

    job: str
    status: JobStatus
    final: bool
    minimise: Minimised
    chosen: int | None
    points: tuple[FrontPoint, ...]
    document: Json = field(repr=False)

    @classmethod
    def from_document(cls, document: Json) -> Self:
        """Read the service's JSON."""
        return cls(
            job=str(document["job"]),
            status=document["status"],
            final=bool(document["final"]),
            minimise=document["minimise"],
            chosen=document.get("chosen"),
            points=tuple(map(FrontPoint.from_document, document["points"])),
            document=document,
        )

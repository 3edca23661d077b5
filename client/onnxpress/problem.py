"""What the service says of something that went wrong: RFC 9457 problem details."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self


@dataclass(frozen=True)
class Fault:
    """One place in a request that is wrong: a JSON pointer into the body or a parameter's name, and a sentence."""

    where: str
    detail: str


@dataclass(frozen=True)
class Problem:
    """RFC 9457 problem details, or the same made from an answer that is none."""

    title: str
    status: int | None = None
    code: str = "unknown"
    detail: str | None = None
    errors: tuple[Fault, ...] = ()
    retryable: bool = False
    request_id: str | None = None
    node: str | None = None
    step: int | None = None
    hint: str | None = None
    document: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def from_document(cls, document: Mapping[str, Any], *, status: int | None = None) -> Self:
        """Read the problem details of an answer, or the problem that a job's or model's row carries."""
        faults = [one for one in document.get("errors") or () if isinstance(one, Mapping)]
        return cls(
            title=str(document.get("title") or document.get("message") or document.get("code") or "Problem"),
            status=status if status is not None else document.get("status"),
            code=str(document.get("code") or "unknown"),
            detail=document.get("detail") or document.get("message"),
            errors=tuple(
                Fault(str(one.get("pointer") or one.get("parameter") or "/"), str(one.get("detail") or ""))
                for one in faults
            ),
            retryable=bool(document.get("retryable")),
            request_id=document.get("request_id"),
            node=document.get("node"),
            step=document.get("step"),
            hint=document.get("hint"),
            document=document,
        )

    def __str__(self) -> str:
        lines = [self.detail or self.title]
        lines += [f"  {fault.where}: {fault.detail}" for fault in self.errors]
        if self.hint:
            lines.append(f"  hint: {self.hint}")
        return "\n".join(lines)

    def to_document(self) -> dict[str, Any]:
        """Give the problem as JSON: what the service sent, or the least that a program needs."""
        if self.document:
            return dict(self.document)
        found = {"title": self.title, "status": self.status, "code": self.code, "detail": self.detail}
        return {key: value for key, value in found.items() if value is not None}

"""What a report is of, which the report itself does not know: the same measurements may answer several jobs."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime


@dataclass(frozen=True)
class Heading:
    """The job that a report is shown for. Names are their owners' words."""

    model: str
    job: str
    at: datetime | None = None
    commit: str | None = None
    link: str | None = None

    def facts(self) -> Iterator[tuple[str, str]]:
        """Yield what there is to say, each with its name."""
        yield "model", self.model
        yield "job", self.job
        if self.commit:
            yield "commit", self.commit[:12]
        if self.at is not None:
            yield "ended", self.at.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def with_heading(markdown: str, heading: Heading) -> str:
    """Give a report's Markdown with what it is of below its title."""
    title, _, rest = markdown.partition("\n")
    facts = [value if name == "ended" else f"{name} {_code(value)}" for name, value in heading.facts()]
    link = [f"[report]({heading.link})"] if heading.link else []
    return "\n".join([title, "", ", ".join([*facts, *link]), *([rest] if rest.startswith("\n") else ["", rest])])


def _code(text: str) -> str:
    """Give somebody's words as code, in which nothing counts as Markdown."""
    return f"`{' '.join(text.replace('`', chr(39)).split())}`"

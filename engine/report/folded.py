"""Sections that Markdown shows folded, so that a long report fits a pull request."""

from collections.abc import Iterable, Iterator

_HEADING = "## "


def folded(lines: Iterable[str]) -> Iterator[str]:
    """Yield the lines with each section (`## Title` and what follows) closed behind its title."""
    is_open = False
    for line in lines:
        if not line.startswith(_HEADING):
            yield line
            continue
        if is_open:
            yield from ("", "</details>", "")
        yield f"<details><summary>{line.removeprefix(_HEADING)}</summary>"
        is_open = True
    if is_open:
        yield from ("", "</details>")

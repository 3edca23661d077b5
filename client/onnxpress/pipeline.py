"""The CI system that a run is part of: what it says of the commit, and how it is told of the end."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

# What a label may hold.
_LONGEST_LABEL = 256
# Of GitHub, for one step.
_LONGEST_SUMMARY = 1_000_000


@dataclass(frozen=True)
class Annotation:
    """A remark that a CI system shows beside the run: of level `error` or `warning`."""

    level: str
    title: str
    text: str


@dataclass(frozen=True)
class Pipeline:
    """What is known of the run; `labels` mark its jobs, the files are where GitHub reads outputs and the summary."""

    labels: Mapping[str, str] = field(default_factory=dict)
    outputs_file: Path | None = None
    summary_file: Path | None = None
    annotates: bool = False

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ) -> "Pipeline":
        """Read GitHub's or GitLab's variables; elsewhere nothing is known."""
        if environment.get("GITHUB_ACTIONS") == "true":
            return cls(
                _labels(_of_github(environment)),
                _path(environment.get("GITHUB_OUTPUT")),
                _path(environment.get("GITHUB_STEP_SUMMARY")),
                annotates=True,
            )
        return cls(_labels(_of_gitlab(environment))) if environment.get("GITLAB_CI") == "true" else cls()

    def tell(self, outputs: Mapping[str, str], summary: str, annotations: Sequence[Annotation]) -> Iterator[str]:
        """Write outputs and summary where they are read; yields the lines that make annotations, for the log."""
        if self.outputs_file is not None:
            with self.outputs_file.open("a", encoding="utf-8") as file:
                file.writelines(f"{name}={' '.join(value.split())}\n" for name, value in outputs.items())
        if self.summary_file is not None:
            with self.summary_file.open("a", encoding="utf-8") as file:
                file.write(fitting(summary, _LONGEST_SUMMARY) + "\n")
        if self.annotates:
            for one in annotations:
                yield f"::{one.level} title={_property(one.title)}::{_message(one.text)}"


def fitting(markdown: str, most: int) -> str:
    """Give Markdown of at most so many bytes: folded details are left out from the last one on, then lines."""
    said = "\n\n_Left out to fit here: details, which the report's file has._\n"
    text = markdown
    while len(text.encode()) > most:
        start, end = text.rfind("<details>"), text.rfind("</details>")
        if start < 0 or end < start:
            kept = text.encode()[: most - len(said.encode())].decode(errors="ignore")
            return kept.rpartition("\n")[0] + said
        text = text[:start].rstrip() + said + text[end + len("</details>") :].replace(said, "").lstrip("\n")
    return text


def _of_github(environment: Mapping[str, str]) -> dict[str, str | None]:
    repository, run = environment.get("GITHUB_REPOSITORY"), environment.get("GITHUB_RUN_ID")
    server = environment.get("GITHUB_SERVER_URL", "https://github.com")
    return {
        "commit": environment.get("GITHUB_SHA"),
        "branch": environment.get("GITHUB_HEAD_REF") or environment.get("GITHUB_REF_NAME"),
        "pipeline": f"{server}/{repository}/actions/runs/{run}" if repository and run else None,
    }


def _of_gitlab(environment: Mapping[str, str]) -> dict[str, str | None]:
    return {
        "commit": environment.get("CI_COMMIT_SHA"),
        "branch": environment.get("CI_MERGE_REQUEST_SOURCE_BRANCH_NAME") or environment.get("CI_COMMIT_REF_NAME"),
        "pipeline": environment.get("CI_PIPELINE_URL"),
    }


def _labels(found: Mapping[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in found.items() if value and len(value) <= _LONGEST_LABEL}


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


def _message(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _message(text).replace(":", "%3A").replace(",", "%2C")

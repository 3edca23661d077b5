"""One comment on a pull or merge request that is written anew at each run, instead of one more each time."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from onnxpress.errors import ServiceError, UsageError
from onnxpress.pipeline import fitting

# Of GitHub; GitLab takes more.
LONGEST = 65_000
_PER_PAGE = 100
_MOST_PAGES = 50
_PULL = re.compile(r"refs/pull/(\d+)/")


@dataclass(frozen=True)
class Review:
    """A pull or merge request as its host's API has it: where comments are listed and made, where one is changed, and how."""

    comments: str
    # With {id}.
    comment: str
    change: str
    headers: Mapping[str, str]

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Review | None":
        """Read GitHub's or GitLab's variables; None where the run is of no pull or merge request. Raises UsageError without a token."""
        if environment.get("GITHUB_ACTIONS") == "true":
            return _of_github(environment)
        if environment.get("GITLAB_CI") == "true":
            return _of_gitlab(environment)
        raise UsageError("this is no run of GitHub's or GitLab's CI; there is nothing to comment on")


def write_comment(review: Review, name: str, text: str) -> bool:
    """Write the comment of that name: over the one that is there, else as a new one; says whether there was one.

    Raises ServiceError where the host does not take it.
    """
    mark = f"<!-- onnxpress: {name} -->"
    body = {"body": f"{mark}\n{fitting(text, LONGEST - len(mark.encode()))}"}
    with httpx.Client(headers=dict(review.headers), timeout=30) as http:
        known = next((one["id"] for one in _comments(http, review) if mark in str(one.get("body"))), None)
        if known is None:
            _asked(http, "POST", review.comments, body)
        else:
            _asked(http, review.change, review.comment.format(id=known), body)
    return known is not None


def _comments(http: httpx.Client, review: Review) -> Iterator[dict[str, Any]]:
    for page in range(1, _MOST_PAGES + 1):
        found = _asked(http, "GET", f"{review.comments}?per_page={_PER_PAGE}&page={page}")
        yield from found
        if len(found) < _PER_PAGE:
            return


def _asked(http: httpx.Client, method: str, url: str, body: Mapping[str, str] | None = None) -> Any:
    try:
        answer = http.request(method, url, json=body)
        answer.raise_for_status()
        return answer.json()
    except httpx.HTTPStatusError as error:
        said = error.response.text[:200]
        hint = (
            "; the token must be allowed to write to pull requests" if error.response.status_code in {401, 403} else ""
        )
        raise ServiceError(f"{method} {url} answered {error.response.status_code}: {said}{hint}") from error
    except (httpx.HTTPError, ValueError) as error:
        raise ServiceError(f"{method} {url}: {error}") from error


def _of_github(environment: Mapping[str, str]) -> Review | None:
    number = _pull_number(environment)
    if number is None:
        return None
    token = environment.get("GITHUB_TOKEN") or environment.get("GH_TOKEN")
    if not token:
        raise UsageError("GITHUB_TOKEN is not set; give the step `env: GITHUB_TOKEN: ${{ github.token }}`")
    api, repository = environment.get("GITHUB_API_URL", "https://api.github.com"), environment["GITHUB_REPOSITORY"]
    base = f"{api}/repos/{repository}/issues"
    return Review(
        f"{base}/{number}/comments",
        f"{base}/comments/{{id}}",
        "PATCH",
        {"Authorization": f"Bearer {token}", "Accept": "application/vnd.github+json"},
    )


def _pull_number(environment: Mapping[str, str]) -> int | None:
    found = _PULL.match(environment.get("GITHUB_REF", ""))
    if found is not None:
        return int(found[1])
    path = environment.get("GITHUB_EVENT_PATH")
    try:
        event = json.loads(Path(path).read_text(encoding="utf-8")) if path else {}
    except (OSError, ValueError):
        return None
    number = (event.get("pull_request") or {}).get("number")
    return int(number) if number else None


def _of_gitlab(environment: Mapping[str, str]) -> Review | None:
    number = environment.get("CI_MERGE_REQUEST_IID")
    if not number:
        return None
    token = environment.get("GITLAB_TOKEN")
    if not token:
        raise UsageError(
            "GITLAB_TOKEN is not set; a job's own token may not comment, so give it one with the scope `api`"
        )
    notes = f"{environment['CI_API_V4_URL']}/projects/{environment['CI_PROJECT_ID']}/merge_requests/{number}/notes"
    return Review(notes, f"{notes}/{{id}}", "PUT", {"PRIVATE-TOKEN": token})

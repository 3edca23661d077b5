"""Commands for pipelines: write the step, and keep one comment on a pull or merge request up to date."""

import os
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from onnxpress.errors import UsageError
from onnxpress.review_comment import Review, write_comment
from onnxpress.terminal import failing, give, tell

# What is written where, for each CI system.
TEMPLATES = {
    "github": {
        "github-action.yml": ".github/actions/onnxpress/action.yml",
        "github-workflow.yml": ".github/workflows/onnxpress.yml",
    },
    "gitlab": {"gitlab-ci.yml": "onnxpress.gitlab-ci.yml"},
}
_NEXT = {
    "github": "Set the secrets ONNXPRESS_URL and ONNXPRESS_API_KEY of the repository, and say in the workflow what your model needs.",
    "gitlab": "Add `include: onnxpress.gitlab-ci.yml` to .gitlab-ci.yml, set the variables ONNXPRESS_URL, ONNXPRESS_API_KEY and"
    " GITLAB_TOKEN of the project, and say in the job what your model needs.",
}


def init_ci(
    system: Annotated[str, typer.Argument(metavar="|".join(TEMPLATES), help="The CI system.", show_default=False)],
    *,
    folder: Annotated[Path, typer.Option("--folder", metavar="FOLDER", help="The repository.")] = Path(),
    force: Annotated[bool, typer.Option("--force", help="Write over files that are there.")] = False,
) -> None:
    """Write the pipeline's step into a repository: compress, judge beside production, comment, promote."""
    with failing():
        if system not in TEMPLATES:
            raise UsageError(f"{system} is not known; it is one of {', '.join(TEMPLATES)}")
        if not folder.is_dir():
            raise UsageError(f"--folder {folder} is no folder")
        wanted = {folder / path: name for name, path in TEMPLATES[system].items()}
        there = [path for path in wanted if path.exists()]
        if there and not force:
            raise UsageError(f"{', '.join(map(str, there))} is there already; --force writes over it")
        for path, name in wanted.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(files("onnxpress").joinpath("ci_templates", name).read_text(encoding="utf-8"))
            give(str(path))
        tell(_NEXT[system])


def comment(
    report: Annotated[Path, typer.Argument(metavar="FILE", help="Markdown, such as a report.", show_default=False)],
    *,
    name: Annotated[
        str, typer.Option("--name", metavar="NAME", help="Which comment: each name has one, which is written anew.")
    ] = "report",
) -> None:
    """Show a report as the one comment of its name on the pull or merge request that this run is of.

    On GitHub GITHUB_TOKEN has to be set, on GitLab GITLAB_TOKEN; the rest the CI system tells. A run of no pull or merge request
    has nothing to comment on, and that is fine.
    """
    with failing():
        if "-->" in name or "\n" in name:
            raise UsageError("--name cannot hold --> or a line's end")
        try:
            text = report.read_text(encoding="utf-8")
        except OSError as error:
            raise UsageError(f"{report} is not readable: {error.strerror}") from error
        review = Review.of(os.environ)
        if review is None:
            tell("no pull or merge request; nothing to comment on")
            return
        tell("the comment was written anew" if write_comment(review, name, text) else "commented")

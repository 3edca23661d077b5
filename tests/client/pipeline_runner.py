"""A small runner of what CI systems run: a composite GitHub Action's steps, and a GitLab job's lines."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import yaml

_TOKEN = re.compile(r"\s*('(?:[^']|'')*'|&&|\|\||==|!=|\(|\)|[A-Za-z_][\w.-]*)")


@dataclass
class Ran:
    """What came of a run: the exit code that failed it, outputs, what each step said."""

    code: int = 0
    outputs: dict[str, str] = field(default_factory=dict)
    log: str = ""
    # Other people's actions, with what they were given.
    used: list[tuple[str, dict[str, str]]] = field(default_factory=list)


class Expression:
    """What stands between `${{` and `}}`: names, texts, `==`, `!=`, `&&`, `||`, `always()`."""

    def __init__(self, text, context):
        self._tokens = _TOKEN.findall(text)
        assert "".join(self._tokens) == re.sub(r"\s", "", text), text
        self._context = context

    def value(self):
        found = self._either()
        assert not self._tokens, self._tokens
        return found

    def _either(self):
        found = self._both()
        while self._take("||"):
            other = self._both()
            found = found or other
        return found

    def _both(self):
        found = self._compared()
        while self._take("&&"):
            other = self._compared()
            found = found and other
        return found

    def _compared(self):
        found = self._one()
        for sign in ("==", "!="):
            if self._take(sign):
                return (found == self._one()) is (sign == "==")
        return found

    def _one(self):
        token = self._tokens.pop(0)
        if token == "(":
            found = self._either()
            assert self._take(")")
            return found
        if token.startswith("'"):
            return token[1:-1].replace("''", "'")
        if self._take("("):
            assert self._take(")")
            return {"always": True, "success": self._context["success"]}[token]
        found = self._context
        for part in token.split("."):
            found = found.get(part, "") if isinstance(found, dict) else ""
        return found

    def _take(self, token):
        if self._tokens[:1] == [token]:
            self._tokens.pop(0)
            return True
        return False


def filled(text, context):
    """Give a text with its expressions' values in their places."""
    return re.sub(r"\$\{\{(.*?)\}\}", lambda found: str(Expression(found[1], context).value()), str(text))


def environment(folder, **more):
    """Give what a runner gives its steps, with this checkout's client on the path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {"PATH": path, "HOME": str(folder), "ONNXPRESS_PATIENCE": "1", "LANG": "C.UTF-8", **more}


def run_action(file, given, folder, github=None, *, env=None, during=None):
    """Run a composite action as GitHub does; `during(process)` is called while its step `compress` runs."""
    action = yaml.safe_load(Path(file).read_text())
    unknown = set(given) - set(action["inputs"])
    assert not unknown, unknown
    context = {"inputs": {}, "steps": {}, "github": {"token": "a-token", **(github or {})}, "success": True}
    for name, told in action["inputs"].items():
        assert name in given or not told.get("required"), name
        context["inputs"][name] = given.get(name, filled(told.get("default", ""), context))
    ran = Ran()
    summary = folder / "summary.md"
    for number, step in enumerate(action["runs"]["steps"]):
        wanted = step.get("if")
        if not (Expression(str(wanted), context).value() if wanted else context["success"]):
            continue
        if "uses" in step:
            ran.used.append((step["uses"], {name: filled(value, context) for name, value in step["with"].items()}))
            continue
        outputs = folder / f"outputs-{number}"
        outputs.touch()
        settings = {name: filled(value, context) for name, value in step.get("env", {}).items()}
        told = {"GITHUB_ACTIONS": "true", "GITHUB_OUTPUT": str(outputs), "GITHUB_STEP_SUMMARY": str(summary)}
        assert step["shell"] == "bash"
        words = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
        is_it = step.get("id") == "compress"
        code, log = _run(
            words, folder, {**environment(folder), **told, **(env or {}), **settings}, during if is_it else None
        )
        ran.log += log
        lines = [line.split("=", 1) for line in outputs.read_text().splitlines()]
        context["steps"][step.get("id", str(number))] = {"outputs": dict(lines)}
        if code and not step.get("continue-on-error"):
            ran.code, context["success"] = ran.code or code, False
    ran.outputs = {name: filled(told["value"], context) for name, told in action["outputs"].items()}
    return ran


def run_gitlab_job(file, given, folder, *, env=None, during=None, after=False):
    """Run the template's job as GitLab does: what is before it and its script in one shell; `after`: also what comes after."""
    job = yaml.safe_load(Path(file).read_text())[".onnxpress"]
    settings = {**environment(folder), "GITLAB_CI": "true", **job["variables"], **given, **(env or {})}
    shell = ["bash", "-eo", "pipefail", "-c"]
    ran = Ran()
    ran.code, ran.log = _run([*shell, "\n".join([*job["before_script"], *job["script"]])], folder, settings, during)
    if after:
        ran.log += _run([*shell, "\n".join(job["after_script"])], folder, settings, None)[1]
    return ran


def _run(words, folder, env, during):
    with subprocess.Popen(
        words, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        said = during(process) if during else ""
        log, _ = process.communicate(timeout=120)
    return process.returncode, said + log

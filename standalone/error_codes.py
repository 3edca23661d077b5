"""The page of error codes: every code that service and command line know, read off the code that raises it."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_WHERE = ("engine", "services", "api", "worker", "sandbox", "client/onnxpress")
# What a place in a sentence stands for is told by the sentence around it.
_PLACE = "…"
# Words without which a sentence says nothing: one that only hands on somebody else's.
_FEWEST = 3
_STATUS = {
    "ConflictError": "409",
    "NotFoundError": "404",
    "UnauthorizedError": "401",
    "InvalidError": "422",
    "RejectedError": "422",
    "QuotaError": "429",
    "TooLargeError": "413",
    "UnavailableError": "503",
    "DigestMismatchError": "400",
    "CorruptError": "500",
    "GoneError": "410",
}


@dataclass
class _Code:
    meaning: str | None = None
    # What is said where it is raised, each with what to do.
    sentences: dict[str, str | None] = field(default_factory=dict)
    statuses: set[str] = field(default_factory=set)


def error_page() -> str:
    """Give the page."""
    return "\n".join(_lines(_codes())) + "\n"


def _lines(codes: dict[str, _Code]) -> Iterator[str]:
    yield from (
        "# Error codes",
        "",
        "Generated from the code by `make docs`. Every error has a `code`, which stays, beside words that say what is wrong;",
    )
    yield f"`{_PLACE}` stands for what is named there. What to do by symptom is in [troubleshooting.md](troubleshooting.md)."
    yield ""
    yield "A code reaches you as `code` of a problem (HTTP, RFC 9457), of a failed job or a rejected upload, or of the command line's own error."
    for code, found in sorted(codes.items()):
        yield from ("", f"## `{code}`", "")
        status = ", ".join(sorted(found.statuses))
        if status:
            yield from (f"HTTP {status}.", "")
        if found.meaning:
            yield from (found.meaning, "")
        for sentence, hint in sorted(found.sentences.items()):
            yield f"* {_markdown(sentence)}" + (f" *{_markdown(hint)}*" if hint else "")


def _markdown(text: str) -> str:
    return " ".join(text.split()).replace("<", "&lt;").replace("*", "\\*")


def _codes() -> dict[str, _Code]:
    trees = [
        ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted(path for room in _WHERE for path in (ROOT / room).rglob("*.py"))
    ]
    found: dict[str, _Code] = {}
    classes: dict[str, str] = {}
    nodes = [node for tree in trees for node in ast.walk(tree)]
    for node in nodes:
        if isinstance(node, ast.ClassDef):
            _class(node, found, classes)
        elif isinstance(node, ast.Dict):
            _table(node, found)
    for node in nodes:
        if isinstance(node, ast.Call):
            _call(node, found, classes)
    return found


def _class(node: ast.ClassDef, found: dict[str, _Code], classes: dict[str, str]) -> None:
    """Take an error class whose body says its code."""
    documentation = ast.get_docstring(node)
    if not node.name.endswith("Error") or documentation is None:
        return
    for line in node.body:
        target = (
            line.target
            if isinstance(line, ast.AnnAssign)
            else line.targets[0]
            if isinstance(line, ast.Assign)
            else None
        )
        value = line.value if isinstance(line, ast.AnnAssign | ast.Assign) else None
        if isinstance(target, ast.Name) and target.id == "code" and isinstance(value, ast.Constant):
            classes[node.name] = str(value.value)
            said = found.setdefault(str(value.value), _Code())
            said.meaning = said.meaning or " ".join(documentation.partition("\n\n")[0].split())
            if node.name in _STATUS:
                said.statuses.add(_STATUS[node.name])


def _table(node: ast.Dict, found: dict[str, _Code]) -> None:
    """Take the table of what the HTTP edge says by itself: status to code and sentence."""
    for key, value in zip(node.keys, node.values, strict=True):
        if isinstance(key, ast.Constant) and isinstance(key.value, int) and isinstance(value, ast.Tuple):
            match [_text(each) for each in value.elts]:
                case [str(code), str(sentence)]:
                    said = found.setdefault(code, _Code())
                    said.sentences.setdefault(sentence)
                    said.statuses.add(str(key.value))


def _call(node: ast.Call, found: dict[str, _Code], classes: dict[str, str]) -> None:
    """Take a call that makes an error: one with a code of its own, or that of its class."""
    name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
    named = {keyword.arg: keyword.value for keyword in node.keywords}
    texts = [text for text in map(_text, node.args) if text is not None]
    if name == "problem" and len(texts) > 1:
        code, sentence = texts[0], texts[1]
        if _PLACE in code:
            return
    else:
        own = _text(named["code"]) if "code" in named else classes.get(name)
        sentence = next((text for text in texts if " " in text), "")
        if (
            not name.endswith(("Error", "Problem"))
            or own is None
            or _PLACE in own
            or len(sentence.replace(_PLACE, "").split()) < _FEWEST
        ):
            return
        code = own
    said = found.setdefault(code, _Code())
    hint = _text(named["hint"]) if "hint" in named else None
    said.sentences[sentence] = said.sentences.get(sentence) or (hint if hint != _PLACE else None)
    status = node.args[0] if node.args else None
    if name == "ApiError" and isinstance(status, ast.Constant):
        said.statuses.add(str(status.value))
    elif name in _STATUS:
        said.statuses.add(_STATUS[name])


def _text(node: ast.expr) -> str | None:
    """Give a sentence as it stands in the code, with a mark for what is put into it; None for what is none."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else _PLACE for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _text(node.left), _text(node.right)
        return (left or _PLACE) + (right or _PLACE) if left or right else None
    return None

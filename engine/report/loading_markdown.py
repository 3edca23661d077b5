"""How to load a network, for people: what it needs, and lines to paste."""

from collections.abc import Iterator

from engine.inspection import Preprocessing, TensorInfo
from engine.report.values import Loading
from engine.report.wording import table


def loading_lines(loading: Loading | None, preprocessing: Preprocessing | None) -> Iterator[str]:
    """Yield the lines of the section; none in a report that does not say it."""
    if loading is None:
        return
    yield from ("", "## How to load it", "", f"{needs(loading)} {chosen_because(loading)}", "")
    yield from ("```python", loading.usage.rstrip(), "```", "")
    yield from tensors(loading)
    if preprocessing is not None:
        yield from ("", "What is fed must have been made as the data were: " + one_line(preprocessing.summary))


def tensors(loading: Loading) -> Iterator[str]:
    """Yield the table of inputs and outputs."""
    rows = [("input", each) for each in loading.inputs] + [("output", each) for each in loading.outputs]
    yield from table(
        ("", "name", "type", "shape"), ((role, f"`{each.name}`", each.dtype, shape(each)) for role, each in rows)
    )


def needs(loading: Loading) -> str:
    """Say which ONNX Runtime the network takes."""
    sets = ", ".join(f"{domain or 'ONNX'} {version}" for domain, version in loading.opset.items())
    least = (
        f"ONNX Runtime {loading.onnxruntime} or newer" if loading.onnxruntime else "a newer ONNX Runtime than we know"
    )
    said = f"It takes {least} (operator sets: {sets}; IR version {loading.ir_version}); it was measured with {loading.measured_with}."
    if loading.beyond_onnx:
        kinds = ", ".join(f"`{kind}`" for kind in loading.beyond_onnx)
        said += f" {kinds} {'are' if len(loading.beyond_onnx) > 1 else 'is'} ONNX Runtime's own: an older release than that may lack one."
    return said


def chosen_because(loading: Loading) -> str:
    """Say where the session options come from."""
    if loading.tuned:
        return "The session options are the ones that it ran fastest with."
    return "The session options are those that it was measured with; `tune` looks for faster ones."


def shape(tensor: TensorInfo) -> str:
    """Write a tensor's shape, open sizes by their name."""
    if tensor.shape is None:
        return "any"
    return " x ".join("?" if size is None else str(size) for size in tensor.shape) or "a number"


def one_line(text: str) -> str:
    """Give somebody's words as one line of Markdown text."""
    return " ".join(text.split()).replace("<", "&lt;")

"""What onnxruntime's exceptions mean, in words for the network's owner.

What is recognised is said in our words with the names that matter (operator, node, input). Of the rest its own sentence is
passed on, without what such texts hold besides: source paths, C++ signatures, files of this host.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from engine.errors import (
    DatasetInvalidError,
    EngineError,
    ModelInvalidError,
    ModelUnsupportedError,
    TargetUnavailableError,
)

_LONGEST = 300
# What stands before and around onnxruntime's own sentence: a code, a place in its sources with the function's signature.
_CODE = re.compile(r"\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : |^\s*(?:Error in execution|Exception during \w+): ")
_SOURCE = re.compile(
    r"[^\s:]*\.(?:cc|cpp|cu|cuh|h|hpp):\d+:?\s*"
    r"(?:(?:[\w:~<>,&*=\[\]-]+\s+)*?[\w:~<>,&*=\[\]]+\((?:[^()]|\([^()]*\))*\)\s*(?:const\s*)?(?:\[with [^\]]*\]\s*)?)?"
)
_TRACE = re.compile(r"\s*Stacktrace:.*", re.DOTALL)
# What CUDA's errors say of the machine.
_HOST = re.compile(r"\s*;\s*(?:GPU=\d+|hostname=\S+|file=\S+|line=\d+)(?=\s*(?:;|$))")
_PATH = re.compile(r"(?<![\w./])(?:/[^\s:;,'\"()\[\]]+|[A-Za-z]:\\[^\s:;,'\"()\[\]]+)")
_STATUS = "Status Message:"

_Rule = tuple[re.Pattern[str], Callable[[re.Match[str]], EngineError]]

_LOAD_RULES: tuple[_Rule, ...] = (
    (
        re.compile(r"implementation for (?P<op>[\w.:]+)\(\d+\) node with name '(?P<node>[^']*)'"),
        lambda found: ModelUnsupportedError(
            f"The target has no kernel for {found['op']} with these types", node=found["node"] or None
        ),
    ),
    (
        re.compile(r"(?:Fatal error: (?P<op>[\w.:]+)\(-?\d+\) is not a registered|No Op registered for (?P<name>\w+))"),
        lambda found: ModelUnsupportedError(
            f"The operator `{found['op'] or found['name']}` is not one that ONNX Runtime knows in this opset"
        ),
    ),
    (
        re.compile(r"Type Error: .*?Optype \((?P<op>\w+)\)"),
        lambda found: ModelInvalidError(f"A node of type {found['op']} gets inputs of types that do not go together"),
    ),
    (
        re.compile(r"Failed to allocate memory|bad_alloc|out of memory", re.IGNORECASE),
        lambda _: ModelUnsupportedError("Loading the network needs more memory than there is"),
    ),
    (
        re.compile(r"guarantees\* support"),
        lambda _: ModelUnsupportedError("The network is stamped with an opset that is newer than the runtime"),
    ),
    (
        re.compile(r"external data", re.IGNORECASE),
        lambda _: ModelInvalidError("The network's external data are missing, or lie outside its folder"),
    ),
    (re.compile(r"is not acyclic"), lambda _: ModelInvalidError("The network's graph has a cycle")),
)

_LOAD_KINDS: Mapping[str, Callable[[], EngineError]] = {
    "EPFail": lambda: TargetUnavailableError("The execution provider failed while it loaded the network"),
    "NoSuchFile": lambda: ModelInvalidError("The network's file is missing"),
    "InvalidProtobuf": lambda: ModelInvalidError("The file is not an ONNX network: it cannot be parsed"),
    "MemoryError": lambda: ModelUnsupportedError("Loading the network needs more memory than there is"),
}

_RUN_RULES: tuple[_Rule, ...] = (
    (
        re.compile(
            r"(?:while running \w+ node\. Name:'(?P<node>[^']*)'.*)?(?:Failed to allocate memory|bad_alloc)", re.DOTALL
        ),
        lambda found: ModelUnsupportedError(
            "Running the network needs more memory than there is", node=found["node"] or None
        ),
    ),
    (
        re.compile(r"while running (?P<op>\w+) node\. Name:'(?P<node>[^']*)'"),
        lambda found: ModelInvalidError(
            f"A node of type {found['op']} failed when the network was run{_told(found.string)}",
            node=found["node"] or None,
        ),
    ),
    (
        re.compile(r"Got invalid dimensions for input: (?P<name>\S+)(?P<rest>.*?)Please fix", re.DOTALL),
        lambda found: DatasetInvalidError(
            f"The data for input `{found['name']}` have the wrong shape: {_axes(found['rest'])}"
        ),
    ),
    (
        re.compile(r"Invalid rank for input: (?P<name>\S+) Got: (?P<got>\d+) Expected: (?P<expected>\d+)"),
        lambda found: DatasetInvalidError(
            f"The data for input `{found['name']}` have {found['got']} axes, not {found['expected']}"
        ),
    ),
    (
        re.compile(r"Actual: \(tensor\((?P<got>\w+)\)\) , expected: \(tensor\((?P<expected>\w+)\)\)"),
        lambda found: DatasetInvalidError(
            f"The data for an input are {found['got']}, the network takes {found['expected']}"
        ),
    ),
    (
        re.compile(r"Invalid input name: (?P<name>\S+)"),
        lambda found: DatasetInvalidError(f"The network has no input `{found['name']}`"),
    ),
    (
        re.compile(r"Required inputs \(\[(?P<names>[^\]]*)\]\) are missing"),
        lambda found: DatasetInvalidError(f"The data lack the network's input {found['names']}"),
    ),
)

_RUN_KINDS: Mapping[str, Callable[[], EngineError]] = {
    "EPFail": lambda: TargetUnavailableError("The execution provider failed while it ran the network"),
    "MemoryError": lambda: ModelUnsupportedError("Running the network needs more memory than there is"),
}


def explain_load(error: BaseException) -> EngineError:
    """Say why a session could not be made."""
    known = _recognise(error, _LOAD_RULES, _LOAD_KINDS)
    return known or ModelInvalidError(f"ONNX Runtime does not load the network{_told(error)}")


def explain_run(error: BaseException) -> EngineError:
    """Say why a run failed: the data do not fit, or a node gave up."""
    known = _recognise(error, _RUN_RULES, _RUN_KINDS)
    return known or ModelInvalidError(f"ONNX Runtime could not run the network with these data{_told(error)}")


def sentence(error: BaseException | str) -> str:
    """Give onnxruntime's own sentence, without places in its sources, signatures and files of this host; may be empty.

    Names of nodes and tensors that begin with a slash, as exporters write them, stay.
    """
    text = _TRACE.sub("", str(error)).rpartition(_STATUS)[2]
    text = _SOURCE.sub(" ", _CODE.sub(" ", text))
    text = _HOST.sub("", text)
    text = " ".join(_PATH.sub(lambda found: _without_host(found[0]), text).split()).strip(" .:")
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


def _without_host(path: str) -> str:
    """Replace what leads into this host's folders: a name of a node only looks like a path."""
    first = path.replace("\\", "/").lstrip("/").partition("/")[0]
    is_file = ":" in first or Path("/", first).exists() or Path(path).suffix in {".onnx", ".so", ".dll"}
    return "a file" if is_file else path


def _told(error: BaseException | str) -> str:
    said = sentence(error)
    return f": {said}" if said else ""


def _recognise(
    error: BaseException, rules: tuple[_Rule, ...], kinds: Mapping[str, Callable[[], EngineError]]
) -> EngineError | None:
    text = str(error)
    for pattern, say in rules:
        if found := pattern.search(text):
            return say(found)
    kind = kinds.get(type(error).__name__)
    return kind() if kind else None


def _axes(text: str) -> str:
    wrong = re.findall(r"index: (\d+) Got: (-?\d+) Expected: (-?\d+)", text)
    return "; ".join(f"axis {axis} is {got}, not {expected}" for axis, got, expected in wrong)


def explain_provider(error: BaseException, provider: str) -> EngineError:
    """Say why an execution provider did not start."""
    if isinstance(error, EngineError):
        return error
    return TargetUnavailableError(
        f"The execution provider {provider} is part of this onnxruntime, but did not start{_told(error)}",
        hint="Its driver, device or libraries may be missing on this host.",
    )


# What CUDA's libraries print of a start that failed; these words hold no path.
_STARTS: tuple[tuple[re.Pattern[str], str, str], ...] = (
    (
        re.compile(r"\b(libcuda\.so[.\d]*): cannot open shared object file"),
        "{0} is missing, which comes with the GPU's driver",
        "Install the driver on the host, and give the container its devices.",
    ),
    (
        re.compile(r"\b(lib[\w+-]+\.so[.\d]*): cannot open shared object file"),
        "its library {0} is missing",
        "The extra `gpu` of onnxpress-server brings CUDA and cuDNN; TensorRT is installed beside them.",
    ),
    (
        re.compile(r"driver version is insufficient for CUDA runtime version"),
        "the GPU's driver is older than this CUDA needs",
        "Update the driver.",
    ),
    (
        re.compile(r"CUDA failure \d+: ([\w ,'-]+)"),
        "CUDA says: {0}",
        "`nvidia-smi` shows whether the driver sees a GPU.",
    ),
)


def explain_start(error: EngineError, printed: str) -> EngineError:
    """Add to a provider's failure what its libraries printed of the cause, where it is recognised."""
    for pattern, said, hint in _STARTS:
        if found := pattern.search(printed):
            return TargetUnavailableError(f"{error.message}: {said.format(*found.groups())}", hint=hint)
    return error

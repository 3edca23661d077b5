"""A network in ONNX Runtime's own format (`.ort`), which loads faster and runs in builds without a reader of ONNX."""

import importlib
from pathlib import Path
from typing import Any

from onnxpress.errors import UsageError


def write_ort_format(source: Path, target: Path) -> Path:
    """Write `source` as `target`, optimised as a session would, but with nothing that only this kind of processor runs.

    Takes onnxruntime, which has to be of the release that will load the file or an older one. Raises UsageError.
    """
    if not target.parent.is_dir():
        raise UsageError(f"{target}: there is no folder {target.parent}")
    try:
        ort: Any = importlib.import_module("onnxruntime")
    except ImportError:
        raise UsageError("the format ort is written by onnxruntime: pip install onnxruntime") from None
    partial = target.with_name(f".{target.name}.part")
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(partial)
    options.add_session_config_entry("session.save_model_format", "ORT")
    try:
        # Blocked layouts have the width of this processor's registers.
        ort.InferenceSession(
            str(source), options, providers=["CPUExecutionProvider"], disabled_optimizers=["NchwcTransformer"]
        )
        partial.replace(target)
    except Exception as error:
        raise UsageError(
            f"onnxruntime {ort.__version__} does not write {source.name} in its own format: {error}"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return target

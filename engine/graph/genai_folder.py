"""What onnxruntime-genai reads beside a network: its configuration and the tokenizer, which go along with a compressed one."""

import json
import shutil
from pathlib import Path
from typing import Any
from zipfile import ZipFile, is_zipfile

CONFIGURATION = "genai_config.json"
_KINDS = frozenset({".json", ".jinja", ".txt", ".model", ".tiktoken"})
_WEIGHTS = (".safetensors.index.json", ".bin.index.json")


def complete(model: Path, out: Path) -> list[str]:
    """Write what lies beside `model` for onnxruntime-genai beside `out` too, and give the names of the files.

    The configuration then names `out`; all else is copied as it is. Nothing is written where `model` has no configuration
    beside it or does not stand in it, where both lie in one folder, or over a file that is there. An archive (a network with
    external data) is unpacked beside itself first, because onnxruntime-genai reads no archives.
    """
    source, folder = model.parent, out.parent
    if not (source / CONFIGURATION).is_file() or source.resolve() == folder.resolve():
        return []
    try:
        configuration = json.loads((source / CONFIGURATION).read_bytes())
    except ValueError:
        # The network is there whatever lies beside it.
        return []
    network = _unpacked(out) if is_zipfile(out) else out.name
    if not _rename(configuration, model.name, network):
        return []
    written = []
    for file in sorted(source.iterdir()):
        target = folder / file.name
        if not file.is_file() or file.suffix not in _KINDS or file.name.endswith(_WEIGHTS) or target.exists():
            continue
        if file.name == CONFIGURATION:
            target.write_text(json.dumps(configuration, indent=2) + "\n")
        else:
            shutil.copyfile(file, target)
        written.append(file.name)
    return written


def _unpacked(archive: Path) -> str:
    """Unpack a network and its external data, flat as the service packs them, and give the network's name."""
    with ZipFile(archive) as packed:
        names = [entry.filename for entry in packed.infolist()]
        for name in names:
            with packed.open(name) as member, (archive.parent / Path(name).name).open("wb") as file:
                shutil.copyfileobj(member, file)
    return next(Path(name).name for name in names if name.endswith(".onnx"))


def _rename(configuration: Any, old: str, new: str) -> bool:
    """Let the parts of a model that are in the file `old` be in `new`; say whether there is one."""
    parts = configuration.get("model") if isinstance(configuration, dict) else None
    found = [part for part in (parts or {}).values() if isinstance(part, dict) and part.get("filename") == old]
    for part in found:
        part["filename"] = new
    return bool(found)

"""A network as folders that others read: a model hub's, and a Triton Inference Server's repository."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

import engine
from models import ArtifactFile
from services.bill_of_materials import bill_of_materials
from services.errors import ConflictError
from services.provenance import Provenance
from services.triton_config import triton_config
from settings import Settings

if TYPE_CHECKING:
    from services.signing import SigningKey

Layout = Literal["hub", "triton"]
SIGNATURE_FILE = "model.sig"
PUBLIC_KEY_FILE = "signing-key.pub"
ORIGINAL_FILE = "model.onnx"
# What is not signed: the signature, and what MLflow has to have beside the network.
_MAY_LIE_BESIDE = (SIGNATURE_FILE, "onnx/MLmodel")


@dataclass(frozen=True)
class Member:
    """A file of a folder: its bytes, or the blob that has them."""

    path: str
    sha256: str
    size: int
    content: bytes | None = None

    @classmethod
    def of_text(cls, path: str, content: bytes) -> "Member":
        """Give a file that is written now."""
        return cls(path, hashlib.sha256(content).hexdigest(), len(content), content)

    @classmethod
    def of_blob(cls, path: str, file: ArtifactFile) -> "Member":
        """Give a file that is stored."""
        return cls(path, file.sha256, file.size)


def signing_key(settings: Settings) -> "SigningKey":
    """Give the key that this installation signs with; raises ConflictError where it cannot sign."""
    if not can_sign():
        raise ConflictError(
            "This service cannot sign: the package cryptography is not installed.",
            code="cannot_sign",
            hint="Install the service with its extra `sign`.",
        )
    from services.signing import SigningKey  # noqa: PLC0415 - only the extra `sign` installs what it takes

    return SigningKey(settings.signing_key)


def can_sign() -> bool:
    """Whether what signs is installed."""
    return find_spec("cryptography") is not None


def hub_folder(found: Provenance, key: "SigningKey | None", original: Provenance | None = None) -> list[Member]:
    """Give the folder as model hubs lay it out: `README.md`, and `onnx/model_int8.onnx` by what the network is.

    `bom.cdx.json`, `report.json`, and how to load it (`onnxpress.json`) go with it, and a signature of all where there is a `key`;
    `original` lies beside it as `onnx/model.onnx`; a result in float32 is `model_optimized.onnx` then.
    Where external data of both have the same names, the original is in a folder `original`.
    """
    file = variant_file(found)
    if original is not None and file == ORIGINAL_FILE:
        file = "model_optimized.onnx"
    members = [*_network(found, file, "onnx")]
    if original is not None:
        members += _beside_it(original, {member.path for member in members})
    members.append(Member.of_text("README.md", model_card(found, file=f"onnx/{file}", signed=key is not None)))
    members += _beside(found)
    return _signed(found, members, key)


def triton_repository(found: Provenance, key: "SigningKey | None", *, max_batch: int = 0) -> list[Member]:
    """Give a model repository: `NAME/config.pbtxt` and `NAME/1/model.onnx`; `max_batch` as Triton's max_batch_size.

    Raises InvalidError where the network takes no such batch.
    """
    name = plain_name(found.model.name)
    config = triton_config(name, found, max_batch=max_batch)
    members = [Member.of_text(f"{name}/config.pbtxt", config.encode()), *_network(found, "model.onnx", f"{name}/1")]
    return _signed(found, members, key)


def model_card(found: Provenance, *, file: str = "model.onnx", signed: bool = False) -> bytes:
    """Give the network's card as Markdown."""
    ancestors = [engine.Ancestor(each.model.name, each.sha256) for each in found.ancestors]
    suffix = variant_suffix(found)
    tags = [suffix.lstrip("_")] if suffix else []
    more = [_HOW_TO_VERIFY] if signed else []
    return engine.model_card(
        found.model.name, file, found.inspection, found.report, ancestors, tags=tags, more=more
    ).encode()


_HOW_TO_VERIFY = (
    f"All files are signed in `{SIGNATURE_FILE}` (OpenSSF model signing):"
    f" `model_signing verify key . --signature {SIGNATURE_FILE} --public_key {PUBLIC_KEY_FILE}` tells whether they are those that"
    " were measured. Take the key from whom you trust, not from here: the service gives it at `/v1/signing-key`."
)


def variant_file(found: Provenance) -> str:
    """Give the file's name as hubs tell variants apart."""
    return f"model{variant_suffix(found)}.onnx"


def variant_suffix(found: Provenance) -> str:
    """Give what hubs call the network's precision: `_int8`, `_q4`, `_fp16`, `_q4f16`, `_bf16`, or nothing for float32."""
    ops, floats = found.inspection.ops, found.inspection.float_type
    half = {"float16": "_fp16", "bfloat16": "_bf16"}.get(floats, "")
    if found.inspection.quantized == "none":
        return half
    steps = found.report.steps if found.report is not None else ()
    bits = {step.parameters.get("bits") for step in steps if step.status == "applied"}
    if 4 in bits or (8 not in bits and {"MatMulNBits", "GatherBlockQuantized"} & ops.keys()):
        return "_q4f16" if half == "_fp16" else "_q4"
    return "_int8"


def plain_name(name: str) -> str:
    """Give a name that folders and registries take: lower case, digits, `-` and `_`."""
    return re.sub(r"[^a-z0-9_-]+", "-", name.lower().removesuffix(".onnx")).strip("-_") or "model"


def _network(found: Provenance, file: str, folder: str) -> Iterator[Member]:
    own, *external = found.files
    yield Member.of_blob(f"{folder}/{file}", own)
    # The network names them by these names.
    yield from (Member.of_blob(f"{folder}/{each.path}", each) for each in external)


def _beside_it(original: Provenance, taken: AbstractSet[str]) -> list[Member]:
    """Give the original's files, in a folder of their own where its external data are called like the result's."""
    members = list(_network(original, ORIGINAL_FILE, "onnx"))
    if taken.isdisjoint(member.path for member in members):
        return members
    return list(_network(original, ORIGINAL_FILE, "original"))


def _beside(found: Provenance) -> Iterator[Member]:
    yield Member.of_text("bom.cdx.json", bill_of_materials(found))
    report = found.report
    if report is None:
        return
    if found.report_file is not None:
        yield Member.of_blob("report.json", found.report_file)
    how = {
        "loading": report.loading.model_dump(mode="json") if report.loading else None,
        "preprocessing": report.preprocessing.model_dump(mode="json") if report.preprocessing else None,
    }
    yield Member.of_text("onnxpress.json", (json.dumps(how, indent=1, ensure_ascii=False) + "\n").encode())


def _signed(found: Provenance, members: Sequence[Member], key: "SigningKey | None") -> list[Member]:
    signed = [*members]
    if key is not None:
        signed.append(Member.of_text(PUBLIC_KEY_FILE, key.public_pem))
        digests = {member.path: member.sha256 for member in signed}
        signed.append(Member.of_text(SIGNATURE_FILE, key.bundle(found.model.name, digests, ignored=_MAY_LIE_BESIDE)))
    return sorted(signed, key=lambda member: member.path)

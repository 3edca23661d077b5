"""Signatures of networks in OpenSSF's model signing format: a Sigstore bundle of an in-toto statement, made with our own key.

`model_signing verify key` and `cosign` read them. The key is a P-256 one that stays on this machine.
"""

import base64
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from services.errors import ConflictError

_PAYLOAD = "application/vnd.in-toto+json"


@dataclass(frozen=True)
class SigningKey:
    """The key of this installation; it is made when it is first used."""

    path: Path

    @cached_property
    def public_pem(self) -> bytes:
        """The public key, as tools that verify take it."""
        return self._private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def bundle(self, name: str, digests: Mapping[str, str], *, ignored: Sequence[str] = ()) -> bytes:
        """Sign files that lie in one folder; the same files give the same bundle.

        Args:
            name: of the network, for people.
            digests: sha256 by path; a single file that is no folder's is called `.`.
            ignored: files that may lie beside them, such as the signature itself.
        """
        payload = json.dumps(_statement(name, digests, ignored), sort_keys=True).encode()
        # Dead Simple Signing Envelope, version 1: what is signed names its type and its length.
        signed = b"DSSEv1 %d %s %d %s" % (len(_PAYLOAD), _PAYLOAD.encode(), len(payload), payload)
        signature = self._private.sign(signed, ec.ECDSA(SHA256(), deterministic_signing=True))
        bundle = {
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": {
                "publicKey": {"hint": hashlib.sha256(self.public_pem).hexdigest()},
                "tlogEntries": [],
            },
            "dsseEnvelope": {
                "payload": base64.b64encode(payload).decode(),
                "payloadType": _PAYLOAD,
                "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
            },
        }
        return (json.dumps(bundle) + "\n").encode()

    @cached_property
    def _private(self) -> ec.EllipticCurvePrivateKey:
        if not self.path.exists():
            made = ec.generate_private_key(ec.SECP256R1())
            _write_once(self.path, made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        try:
            key = load_pem_private_key(self.path.read_bytes(), None)
        except (OSError, ValueError, TypeError) as error:
            raise _unusable(str(error)) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            raise _unusable("it is no P-256 key")
        return key


def _statement(name: str, digests: Mapping[str, str], ignored: Sequence[str]) -> dict[str, object]:
    paths = sorted(digests)
    root = hashlib.sha256(b"".join(bytes.fromhex(digests[path]) for path in paths)).hexdigest()
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": name, "digest": {"sha256": root}}],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": [*ignored],
            },
            "resources": [{"name": path, "algorithm": "sha256", "digest": digests[path]} for path in paths],
        },
    }


def _write_once(path: Path, content: bytes) -> None:
    """Write a new key that nobody else may read; of two processes that make one, the first one's stays."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    try:
        os.link(partial, path)
    except FileExistsError:
        pass
    finally:
        partial.unlink()


def _unusable(reason: str) -> ConflictError:
    return ConflictError(
        f"The signing key cannot be used: {reason}.",
        code="cannot_sign",
        hint="ONNXPRESS_SIGNING_KEY_FILE has to name a P-256 private key in PEM without a password.",
    )

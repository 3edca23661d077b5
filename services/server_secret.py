"""The service's own secret: a file that only its user reads, and what is derived from it for one purpose each."""

import hashlib
import hmac
import os
import secrets
from contextlib import suppress
from pathlib import Path

from services.errors import ServiceError
from settings import Settings
from settings.private_folder import private_folder

_LEAST_LETTERS = 32
_FOR_OTHERS = 0o077


class SecretError(ServiceError):
    """There is no secret that could be used."""

    code = "secret"


class ServerSecret:
    """What signs for this installation. It is never shown or stored; only what is derived from it is."""

    def __init__(self, text: str) -> None:
        self._key = text.encode()
        # Tells two secrets apart and nothing of either.
        self.name = self.derive("name").hex()[:16]

    def derive(self, purpose: str) -> bytes:
        """Give 32 bytes that are for one purpose alone."""
        return hmac.digest(self._key, purpose.encode(), hashlib.sha256)


def open_server_secret(settings: Settings) -> ServerSecret:
    """Give the secret of the settings; where none is named, one is made in the data folder. Raises SecretError."""
    given = settings.secret.get_secret_value().strip()
    return ServerSecret(_checked(given, "ONNXPRESS_SECRET") if given else _read(settings))


def _read(settings: Settings) -> str:
    path = settings.secret_file or settings.data_dir / "secret.key"
    if settings.secret_file is None and not path.exists():
        _make(private_folder(settings.data_dir), path)
    try:
        text = path.read_text().strip()
    except (OSError, UnicodeError) as error:
        raise SecretError(f"ONNXPRESS_SECRET_FILE: {path} cannot be read: {type(error).__name__}.") from error
    seen = path.stat()
    if seen.st_mode & _FOR_OTHERS and seen.st_uid == os.geteuid():
        path.chmod(0o600)
    return _checked(text, str(path))


def _checked(text: str, where: str) -> str:
    if len(text) < _LEAST_LETTERS:
        raise SecretError(f"{where} has {len(text)} letters; a secret takes {_LEAST_LETTERS}: `openssl rand -hex 32`.")
    return text


def _make(folder: Path, path: Path) -> None:
    temporary = folder / f".{path.name}.{secrets.token_hex(4)}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{secrets.token_hex(32)}\n")
        file.flush()
        os.fsync(file.fileno())
    # Of two processes that start at once, one makes it and both read it.
    with suppress(FileExistsError):
        path.hardlink_to(temporary)
    temporary.unlink()

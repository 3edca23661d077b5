"""Links that give one artifact to whoever has them, for a time: signed with the service's secret, stored nowhere."""

import hashlib
import hmac
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy.orm import Session

from services import artifacts, keys
from services.errors import GoneError, NotFoundError, UnauthorizedError
from services.keys import Caller
from services.server_secret import ServerSecret

_PURPOSE = "download link 1"
_REFUSAL = "The link is not valid, or the key that made it is no longer."


@dataclass(frozen=True)
class Link:
    """What a link says: whose artifact, under which name, until when (seconds of the epoch), and which key has made it."""

    tenant_id: str
    key_id: str
    digest: str
    name: str
    expires: int

    def signature(self, secret: ServerSecret) -> str:
        """Sign all of it."""
        # Each with its length: no two links have the same text.
        fields = (self.tenant_id, self.key_id, self.digest, self.name, str(self.expires))
        text = "".join(f"{len(field)}:{field}" for field in fields)
        return hmac.new(secret.derive(_PURPOSE), text.encode(), hashlib.sha256).hexdigest()


def make(session: Session, caller: Caller, digest: str, name: str, expires_at: datetime) -> Link:
    """Give a link to an artifact, or a single file, of the caller's tenant; raises NotFoundError."""
    try:
        artifacts.get_artifact(session, caller.tenant_id, digest)
    except NotFoundError:
        artifacts.get_blob(session, caller.tenant_id, digest)
    return Link(caller.tenant_id, caller.key_id, digest, name, int(expires_at.timestamp()))


def caller_of(session: Session, secret: ServerSecret, link: Link, signature: str) -> Caller:
    """Give who had made a link; raises UnauthorizedError for one that is not ours or whose key is no longer valid, GoneError."""
    if not hmac.compare_digest(link.signature(secret).encode(), signature.encode()):
        raise UnauthorizedError(_REFUSAL)
    if link.expires <= datetime.now(UTC).timestamp():
        raise GoneError("The link's time is over; ask for a new one.", code="link_expired")
    caller = keys.valid_caller(session, link.key_id)
    if caller is None or caller.tenant_id != link.tenant_id:
        raise UnauthorizedError(_REFUSAL)
    return caller

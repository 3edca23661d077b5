"""Whoever sends: a thread of each API process that looks for what is due, and others that make the attempts."""

import logging
import ssl
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from sqlalchemy.exc import SQLAlchemyError

from models import Webhook, WebhookDelivery
from services import db
from services.server_secret import ServerSecret
from services.webhooks import deliveries, signature
from services.webhooks.addresses import Policy
from services.webhooks.post import Sender
from settings import Settings

_log = logging.getLogger(__name__)
_AT_ONCE = 16
# So that receivers that do not answer hold up their own tenant alone.
_AT_ONCE_OF_A_TENANT = 4
_LOOK_S = 1.0


@dataclass(frozen=True)
class _Attempt:
    """A claimed delivery and where it goes."""

    delivery: WebhookDelivery
    webhook: Webhook
    headers: dict[str, str]


class Courier:
    """Sends what is due until it is stopped. The rows are the truth: whoever dies in between, another process goes on."""

    def __init__(
        self, database: db.Database, secret: ServerSecret, settings: Settings, sender: Sender | None = None
    ) -> None:
        self._database = database
        self._secret = secret
        tls = ssl.create_default_context(cafile=settings.webhook_ca_file)
        self._sender = sender or Sender(Policy.from_settings(settings), tls)
        self._pause_s = min(_LOOK_S, settings.reconcile_s)
        self._busy: dict[str, str] = {}
        self._lock = threading.Lock()
        self._woken = threading.Event()
        self._stopped = threading.Event()
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="webhooks")
        self._thread = threading.Thread(target=self._run, name="courier", daemon=True)

    def start(self) -> None:
        """Start to look for what is due."""
        self._thread.start()

    def stop(self) -> None:
        """End after the attempts that are on."""
        self._stopped.set()
        self._woken.set()
        if self._thread.is_alive():
            self._thread.join()
        self._pool.shutdown()

    def round(self) -> int:
        """Begin the attempts that are due and that there is room for; gives their number."""
        with self._lock:
            busy = dict(self._busy)
        with self._database.reading() as session:
            found = deliveries.due(session, self._secret.name, db.now(session), list(busy), _AT_ONCE * 4)
        of_tenants, begun = Counter(busy.values()), 0
        for one in found:
            if len(busy) + begun < _AT_ONCE and of_tenants[one.tenant_id] < _AT_ONCE_OF_A_TENANT and self._begin(one):
                of_tenants[one.tenant_id] += 1
                begun += 1
        return begun

    def _begin(self, due: deliveries.Due) -> bool:
        with self._database.transaction() as session:
            row = deliveries.claim(session, due.delivery_id)
            if row is None:
                return False
            webhook = session.get_one(Webhook, row.webhook_id)
            headers = signature.headers(self._secret, webhook, row.id, db.now(session), row.body)
        with self._lock:
            self._busy[webhook.id] = row.tenant_id
        self._pool.submit(self._attempt, _Attempt(row, webhook, headers))
        return True

    def _attempt(self, attempt: _Attempt) -> None:
        row = attempt.delivery
        try:
            outcome = self._sender.post(attempt.webhook.url, attempt.headers, row.body.encode())
            _log.info("webhook %s: %s: %s", row.webhook_id, row.id, outcome.result)
            with self._database.transaction() as session:
                deliveries.note(session, row.id, outcome)
        except SQLAlchemyError as error:
            # It is sent again when the claim is over: twice is better than never.
            _log.warning("webhook %s: outcome of %s not noted: %s", row.webhook_id, row.id, type(error).__name__)
        finally:
            with self._lock:
                self._busy.pop(row.webhook_id, None)
            self._woken.set()

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._woken.clear()
            try:
                self.round()
            except SQLAlchemyError as error:
                _log.warning("webhooks: %s", type(error).__name__)
            self._woken.wait(self._pause_s)

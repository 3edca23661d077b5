"""A task's message, which makes it known when it cannot be acknowledged."""

import logging

from celery.worker.request import Request as CeleryRequest
from kombu.asynchronous import get_event_loop

_log = logging.getLogger(__name__)


class Request(CeleryRequest):
    """Has the worker connect anew when an acknowledgement fails.

    Celery only logs the failure. The message then counts as unacknowledged for ever, and with a prefetch of one the worker
    never asks for another: it lives on, and is deaf (tests/faults shows it).
    """

    def acknowledge(self) -> None:
        """Take the message out of the broker; without one the rows know what was done."""
        self._told(requeue=None)

    def reject(self, requeue: bool = False) -> None:
        """Put the message back, or away."""
        self._told(requeue=requeue)

    def _told(self, *, requeue: bool | None) -> None:
        if self.acknowledged:
            return
        self.acknowledged = True
        try:
            if requeue is None:
                self.message.ack()
            else:
                self.message.reject(requeue=requeue)
        except self.connection_errors as error:
            _log.warning("message of task %s: broker away, connecting anew", self.id)
            hub = get_event_loop()
            assert hub is not None, "only a worker's loop acknowledges"
            hub.call_soon(_raise, error)


def _raise(error: Exception) -> None:
    raise error

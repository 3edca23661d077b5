"""How often one key may ask, and all keys of a tenant together."""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from services.errors import QuotaError
from services.keys import Caller, Rate

_BUCKETS = 10_000


@dataclass
class _Bucket:
    left: float
    at: float


class RateLimiter:
    """A bucket of requests for each key, and for each tenant with a rate of its own: it holds `burst`, and `per_s` flow in."""

    def __init__(self, per_s: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._of_a_key = Rate(per_s, burst)
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}
        self._lock = threading.Lock()

    def take(self, caller: Caller) -> None:
        """Let a request pass; raises QuotaError where the bucket of its key, or its tenant's, is empty."""
        if self._of_a_key.per_s:
            self._take(caller.key_id, self._of_a_key, "This key sends requests too fast.")
        if caller.rate is not None:
            said = "The keys of this tenant send requests too fast together."
            self._take(f"tenant {caller.tenant_id}", caller.rate, said)

    def _take(self, name: str, rate: Rate, said: str) -> None:
        with self._lock:
            now = self._clock()
            bucket = self._buckets.pop(name, None) or _Bucket(rate.burst, now)
            bucket.left = min(rate.burst, bucket.left + (now - bucket.at) * rate.per_s)
            bucket.at = now
            # In order of use, so that the first one is the one that was not used for longest.
            self._buckets[name] = bucket
            if len(self._buckets) > _BUCKETS:
                del self._buckets[next(iter(self._buckets))]
            if bucket.left < 1:
                wait = math.ceil((1 - bucket.left) / rate.per_s)
                raise QuotaError(said, code="rate_limited", retry_after_s=max(1, wait))
            bucket.left -= 1

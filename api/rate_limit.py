"""How often one key may ask."""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from services.errors import QuotaError

_KEYS = 10_000


@dataclass
class _Bucket:
    left: float
    at: float


class RateLimiter:
    """A bucket of requests for each key: it holds `burst`, and `per_s` flow in again each second."""

    def __init__(self, per_s: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s = per_s
        self._burst = burst
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}
        self._lock = threading.Lock()

    def take(self, key_id: str) -> None:
        """Let a request pass; raises QuotaError where the key's bucket is empty."""
        if not self._per_s:
            return
        with self._lock:
            now = self._clock()
            bucket = self._buckets.pop(key_id, None) or _Bucket(self._burst, now)
            bucket.left = min(self._burst, bucket.left + (now - bucket.at) * self._per_s)
            bucket.at = now
            # In order of use, so that the first one is the one that was not used for longest.
            self._buckets[key_id] = bucket
            if len(self._buckets) > _KEYS:
                del self._buckets[next(iter(self._buckets))]
            if bucket.left < 1:
                wait = math.ceil((1 - bucket.left) / self._per_s)
                raise QuotaError("This key sends requests too fast.", code="rate_limited", retry_after_s=max(1, wait))
            bucket.left -= 1

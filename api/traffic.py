"""How much the API is asked and how often one key may ask."""

import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from services.errors import QuotaError
from services.metrics import Family

_KEYS = 10_000


class Traffic:
    """Counts of this process's answers, by route and status."""

    def __init__(self) -> None:
        # Only the event loop counts.
        self._answers: Counter[tuple[str, str, int]] = Counter()
        self._seconds: Counter[str] = Counter()

    def count(self, method: str, route: str | None, status: int, seconds: float) -> None:
        """Note an answer; addresses without a route are one."""
        name = route or "none"
        self._answers[method, name, status] += 1
        self._seconds[name] += seconds  # type: ignore[assignment]  # a Counter adds up floats as well

    def families(self) -> list[Family]:
        """Give the counts as metrics."""
        answers = Family("onnxpress_http_answers_total", "counter", "Answers by method, route and status.")
        answers.samples = [
            ({"method": method, "route": route, "status": str(status)}, count)
            for (method, route, status), count in sorted(self._answers.items())
        ]
        seconds = Family("onnxpress_http_seconds_total", "counter", "Time spent on answers, waits included, by route.")
        seconds.samples = [({"route": route}, round(total, 6)) for route, total in sorted(self._seconds.items())]
        return [answers, seconds]


@dataclass
class _Bucket:
    left: float
    at: float


class Rates:
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

"""How much the API is asked, and how long its answers take."""

from collections import Counter

from services.metrics import Family


class RequestMetrics:
    """Counts of this process's answers, by route and status."""

    def __init__(self) -> None:
        # Only the event loop counts; threads that tell of it take copies.
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
            for (method, route, status), count in sorted(self._answers.copy().items())
        ]
        seconds = Family("onnxpress_http_seconds_total", "counter", "Time spent on answers, waits included, by route.")
        seconds.samples = [({"route": route}, round(total, 6)) for route, total in sorted(self._seconds.copy().items())]
        return [answers, seconds]

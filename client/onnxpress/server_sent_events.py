"""Server-sent events, as far as the service sends them."""

import json
from collections.abc import Iterable, Iterator

from onnxpress.documents import Event


def read_events(lines: Iterable[str]) -> Iterator[Event]:
    """Yield the events of a stream; comments that only keep it alive are left out."""
    fields: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
            continue
        if "data" in fields:
            yield Event(int(fields.get("id", "0")), fields.get("event", "message"), json.loads(fields["data"]))
        fields = {}

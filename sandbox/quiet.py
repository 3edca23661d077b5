"""One measurement at a time on a host, and no heavy work of ours beside it; kept by parents, who are trusted, in a folder.

Each that waits for its turn, or has it, has a file there, which it locks: a file that nobody locks is of somebody who is dead.
Any number may work, or one may measure. Work that asks after a measurement did waits for it, so that a measurement always gets
its turn; of those that want to measure, the tenant comes first whose turn was the longest ago.
"""

import errno
import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

Side = Literal["working", "measuring"]
State = Literal["waiting", "inside", "paused"]
_GUARD, _SERVED = ".guard", ".served"
_MOST_REMEMBERED = 1000
# Of a place in its file: all of it is there from the beginning, so that a change of it needs no more of the disk.
_ROOM_BYTES = 4096


@dataclass(frozen=True)
class Place:
    """Of one that waits or is inside: since when it waits, by the clock that all processes of a host share."""

    name: str
    tenant: str
    side: Side
    state: State
    since: float


class Turn:
    """One wish for the host, from the asking to the leaving."""

    def __init__(self, room: "Room", place: Place, descriptor: int) -> None:
        self._room = room
        self._descriptor = descriptor
        self.place = place

    def enter(self) -> bool:
        """Go inside if it is this one's turn."""
        with self._room.guarded():
            if self._room.may_enter(self.place):
                self._write(replace(self.place, state="inside"))
                if self.place.side == "measuring":
                    self._room.remember(self.place.tenant)
        return self.place.state == "inside"

    def pause(self) -> None:
        """Stand aside, until `enter` says that it may go on."""
        with self._room.guarded():
            self._write(replace(self.place, state="paused", since=time.monotonic()))

    def is_wanted(self) -> bool:
        """Tell whether somebody waits for this one to leave."""
        with self._room.guarded():
            others = [other for other in self._room.places() if other.name != self.place.name]
        if self.place.side == "measuring":
            return bool(others)
        return any(other.side == "measuring" for other in others)

    def leave(self) -> None:
        """Leave, or stop waiting."""
        with self._room.guarded():
            (self._room.folder / self.place.name).unlink(missing_ok=True)
        os.close(self._descriptor)

    def _write(self, place: Place) -> None:
        _write(self._descriptor, place)
        self.place = place


class Room:
    """The folder of one host."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def ask(self, side: Side, tenant: str) -> Turn:
        """Begin to wait for a turn."""
        place = Place(secrets.token_hex(8), tenant, side, "waiting", time.monotonic())
        with self.guarded():
            descriptor = os.open(self.folder / place.name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                _write(descriptor, place)
            except BaseException:
                (self.folder / place.name).unlink(missing_ok=True)
                os.close(descriptor)
                raise
        return Turn(self, place, descriptor)

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Look at the folder, and change it, alone."""
        descriptor = os.open(self.folder / _GUARD, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def may_enter(self, place: Place) -> bool:
        """Tell whose turn it is."""
        others = [other for other in self.places() if other.name != place.name]
        waiting = [other for other in others if other.side == "measuring" and other.state == "waiting"]
        if any(other.side == "measuring" and other.state == "inside" for other in others):
            return False
        if place.side == "working":
            return not any(other.since <= place.since for other in waiting)
        served = self._served()

        def order(one: Place) -> tuple[float, float, str]:
            return served.get(one.tenant, 0.0), one.since, one.name

        is_first = all(order(place) < order(other) for other in waiting)
        return is_first and not any(other.state == "inside" for other in others)

    def places(self) -> list[Place]:
        """Give everybody's, without those who are dead."""
        found = []
        for file in self.folder.iterdir():
            if not file.name.startswith("."):
                place = _read(file)
                if place is None:
                    file.unlink(missing_ok=True)
                else:
                    found.append(place)
        return found

    def remember(self, tenant: str) -> None:
        """Note that it was this tenant's turn to measure, if the disk has room for it: it is only for fairness."""
        served = {**self._served(), tenant: time.monotonic()}
        latest = sorted(served.items(), key=lambda item: item[1])[-_MOST_REMEMBERED:]
        with suppress(OSError):
            (self.folder / _SERVED).write_text(json.dumps(dict(latest)))

    def _served(self) -> dict[str, float]:
        with suppress(OSError, ValueError):
            told = json.loads((self.folder / _SERVED).read_bytes())
            # Of before the machine was started again, when the clock began anew.
            return {str(name): float(when) for name, when in told.items() if float(when) <= time.monotonic()}
        return {}


def _read(file: Path) -> Place | None:
    """Give what its owner wrote; None where the owner is dead, or the disk was too full for it to have a place."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with suppress(ValueError):
            return Place(**json.loads(os.read(descriptor, _ROOM_BYTES)))
    finally:
        os.close(descriptor)
    return None


def _write(descriptor: int, place: Place) -> None:
    text = json.dumps(vars(place)).encode().ljust(_ROOM_BYTES)
    if os.pwrite(descriptor, text, 0) < len(text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

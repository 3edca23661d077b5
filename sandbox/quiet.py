"""One measurement at a time on a host, and no heavy work of ours beside it; kept by parents, who are trusted, in a folder.

Each that waits for its turn, or has it, has a file there, which it locks: a file that nobody locks is of somebody who is dead.
Any number may work, or one may measure. Work that asks after a measurement did waits for it, so that a measurement always gets
its turn; of those that want to measure, the tenant comes first whose turn was the longest ago. One whose work had to be stopped while
another tenant waited stands back behind that one's jobs for as long as it was waited for, and for ten times as long where a measurement had
to be ended: who never leaves by itself costs a job of others one wait, and not one at each of its measurements.
"""

import errno
import fcntl
import json
import os
import secrets
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

Side = Literal["working", "measuring"]
# `present`: it neither waits nor is inside, but its job goes on.
State = Literal["waiting", "inside", "paused", "present"]
_GUARD, _SERVED, _OWED = ".guard", ".served", ".owed"
# How often the time that others waited is given back to them: for work that was stopped, and for a measurement that was ended, which
# each new job may begin anew. And the most of it.
_STOPPED_TIMES, _ENDED_TIMES, _MOST_OWED_S = 1.0, 10.0, 3600.0
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
        self._entered = 0.0
        self.place = place

    def enter(self) -> bool:
        """Go inside if it is this one's turn."""
        with self._room.guarded():
            if self._room.may_enter(self.place):
                self._write(replace(self.place, state="inside"))
                self._entered = time.monotonic()
                if self.place.side == "measuring":
                    self._room.remember(self.place.tenant)
        return self.place.state == "inside"

    def pause(self) -> None:
        """Stand aside, until `enter` says that it may go on."""
        with self._room.guarded():
            self._room.charge(self.place, self._entered, _STOPPED_TIMES)
            self._write(replace(self.place, state="paused", since=time.monotonic()))

    def is_wanted(self) -> bool:
        """Tell whether somebody waits for this one to leave."""
        with self._room.guarded():
            others = self._room.wanting(self.place)
        if self.place.side == "measuring":
            return bool(others)
        return any(other.side == "measuring" for other in others)

    def leave(self, *, by_force: bool = False) -> None:
        """Leave, or stop waiting; `by_force`: a measurement was ended, and did not end."""
        with self._room.guarded():
            if by_force and self.place.side == "measuring" and self.place.state == "inside":
                self._room.charge(self.place, self._entered, _ENDED_TIMES)
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

    def attend(self, tenant: str) -> Turn:
        """Say that a job of this tenant goes on, until it leaves."""
        return self._place("working", tenant, "present")

    def ask(self, side: Side, tenant: str) -> Turn:
        """Begin to wait for a turn."""
        return self._place(side, tenant, "waiting")

    def _place(self, side: Side, tenant: str, state: State) -> Turn:
        place = Place(secrets.token_hex(8), tenant, side, state, time.monotonic())
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
        everybody = self.places()
        owing = self._owing()
        if _stands_back(place, everybody, owing):
            return False
        others = [other for other in everybody if other.name != place.name]
        waiting = [
            other
            for other in others
            if (other.side, other.state) == ("measuring", "waiting") and not _stands_back(other, everybody, owing)
        ]
        if any(other.side == "measuring" and other.state == "inside" for other in others):
            return False
        if place.side == "working":
            return not any(other.since <= place.since for other in waiting)
        served, now = self._times(_SERVED), time.monotonic()

        def order(one: Place) -> tuple[float, float, str]:
            when = served.get(one.tenant, 0.0)
            # Of before the machine was started again, when the clock began anew.
            return when if when <= now else 0.0, one.since, one.name

        is_first = all(order(place) < order(other) for other in waiting)
        return is_first and not any(other.state == "inside" for other in others)

    def wanting(self, place: Place) -> list[Place]:
        """Give the others that are inside, or wait and may come inside when it is their turn."""
        everybody = self.places()
        owing = self._owing()
        return [
            other
            for other in everybody
            if other.name != place.name and other.state != "present" and not _stands_back(other, everybody, owing)
        ]

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
        """Note that it was this tenant's turn to measure."""
        self._keep(_SERVED, {**self._times(_SERVED), tenant: time.monotonic()})

    def charge(self, place: Place, entered: float, times: float) -> None:
        """Note that one who was inside since then had to make room, if other tenants waited for it."""
        since = [
            other.since for other in self.wanting(place) if other.tenant != place.tenant and other.state != "inside"
        ]
        if since:
            now = time.monotonic()
            until = now + min(_MOST_OWED_S, times * (now - max(entered, min(since))))
            self._keep(_OWED, {**self._times(_OWED), place.tenant: until})

    def _owing(self) -> frozenset[str]:
        now = time.monotonic()
        # What lies further ahead is of before the machine was started again.
        return frozenset(tenant for tenant, until in self._times(_OWED).items() if now < until <= now + _MOST_OWED_S)

    def _keep(self, name: str, times: dict[str, float]) -> None:
        """Write by tenant when something was, if the disk has room for it: it is only for fairness."""
        latest = sorted(times.items(), key=lambda item: item[1])[-_MOST_REMEMBERED:]
        with suppress(OSError):
            (self.folder / name).write_text(json.dumps(dict(latest)))

    def _times(self, name: str) -> dict[str, float]:
        with suppress(OSError, ValueError):
            told = json.loads((self.folder / name).read_bytes())
            return {str(tenant): float(when) for tenant, when in told.items()}
        return {}


def _stands_back(place: Place, everybody: Sequence[Place], owing: Collection[str]) -> bool:
    """Tell whether one that is outside owes its turn to another tenant, whose job goes on."""
    return place.state in {"waiting", "paused"} and (
        place.tenant in owing and any(other.tenant != place.tenant and other.tenant not in owing for other in everybody)
    )


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

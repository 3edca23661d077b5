"""A child's turns on its host, as its watcher keeps them: asked for, waited for, bounded."""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from sandbox import processes
from sandbox.messages import GarbledError
from sandbox.quiet import Room, Turn

# Of threads of one child.
_MOST_TURNS = 64
_SIDES = ("working", "measuring")
# Shorter waits are not worth telling of.
_TOLD_AFTER_S = 0.5


@dataclass
class Turns:
    """What a child waits for and holds.

    Args:
        room: the host's; None where nothing is measured beside anything.
        tenant: whose child it is: turns to measure go round among tenants.
        working_s: how long it may work on after somebody wants to measure and it has heard so; then it is stopped until that
            is done.
        measuring_s: how long it may measure while somebody waits.
        say: tells the child something.
        tell: tells of the child that it waits, and that it goes on.
    """

    room: Room | None
    tenant: str
    working_s: float
    measuring_s: float
    say: Callable[[dict[str, Any]], None]
    tell: Callable[[dict[str, Any]], None]
    # Seconds in which it waited, or was stopped, with nothing to say about that itself.
    waited_s: float = 0.0
    _turns: dict[int, Turn] = field(default_factory=dict)
    _wanted_since: float | None = None
    _inside_since: dict[int, float] = field(default_factory=dict)
    _stopped: bool = False
    _seen: float = field(default_factory=time.monotonic)
    _waits_since: float | None = None
    _has_told: bool = False
    _presence: Turn | None = None

    def __post_init__(self) -> None:
        # On a full disk it is not known that its job goes on, which is only for fairness.
        with suppress(OSError):
            self._presence = None if self.room is None else self.room.attend(self.tenant)

    @property
    def waits(self) -> bool:
        """Whether it waits for a turn, or is stopped for another one's."""
        return self._stopped or any(turn.place.state == "waiting" for turn in self._turns.values())

    def hear(self, told: Mapping[str, Any]) -> None:
        """Take a child's wish, or that it leaves; raises GarbledError for a wish that no child has."""
        number = told.get("turn")
        if not isinstance(number, int) or isinstance(number, bool):
            raise GarbledError("a turn without a number")
        if told["type"] == "leave":
            if number not in self._turns:
                raise GarbledError("it leaves where it is not")
            self._inside_since.pop(number, None)
            self._turns.pop(number).leave()
        else:
            self._ask(number, told.get("side"))

    def _ask(self, number: int, side: object) -> None:
        if number in self._turns or len(self._turns) >= _MOST_TURNS or side not in _SIDES:
            raise GarbledError("a wish for a turn that makes no sense")
        if self.room is None:
            raise GarbledError("a wish for a turn where there are none")
        if self._turns and "measuring" in {side, *(turn.place.side for turn in self._turns.values())}:
            # It would wait for itself, and all others for it.
            raise GarbledError("a wish to measure beside its own work")
        self._turns[number] = self.room.ask("measuring" if side == "measuring" else "working", self.tenant)
        self._enter(number)

    def look(self, pid: int) -> bool:
        """See whose turn it is now, and count the time; False where the child has measured for too long."""
        self._count()
        for number, turn in self._turns.items():
            if turn.place.state == "waiting":
                self._enter(number)
        self._tell_of_waiting()
        return self._make_room(pid)

    def end(self) -> None:
        """Leave, for the child has ended."""
        self._count()
        for turn in self._turns.values():
            turn.leave(by_force=True)
        self._turns.clear()
        if self._presence is not None:
            self._presence.leave()
            self._presence = None

    def _enter(self, number: int) -> None:
        if self._turns[number].enter():
            self._inside_since[number] = time.monotonic()
            self.say({"turn": number})

    def _count(self) -> None:
        now = time.monotonic()
        if self.waits:
            self.waited_s += now - self._seen
        self._seen = now

    def _tell_of_waiting(self) -> None:
        if not self.waits:
            self._waits_since = None
            if self._has_told:
                self._has_told = False
                self.tell({"type": "quiet"})
            return
        self._waits_since = self._waits_since or time.monotonic()
        if not self._has_told and time.monotonic() - self._waits_since > _TOLD_AFTER_S:
            self._has_told = True
            self.tell({"type": "waiting_for_quiet"})

    def _make_room(self, pid: int) -> bool:
        inside = {number: turn for number, turn in self._turns.items() if turn.place.state != "waiting"}
        if self._stopped:
            self._go_on(pid, inside)
            return True
        wanted = {number: turn for number, turn in inside.items() if turn.is_wanted()}
        if not wanted:
            if self._wanted_since is not None:
                self._wanted_since = None
                self.say({"wanted": False})
            return True
        now = time.monotonic()
        for number, turn in wanted.items():
            if turn.place.side == "measuring" and now - self._inside_since[number] > self.measuring_s:
                return False
        working = {number: turn for number, turn in wanted.items() if turn.place.side == "working"}
        if not working:
            return True
        if self._wanted_since is None:
            self._wanted_since = now
            self.say({"wanted": True})
        elif now - max(self._wanted_since, *(self._inside_since[number] for number in working)) > self.working_s:
            self._stop(pid, working)
        return True

    def _stop(self, pid: int, working: Mapping[int, Turn]) -> None:
        """Have the child and all below it stand still until the measurement is over."""
        processes.stop(pid)
        self._stopped = True
        for turn in working.values():
            turn.pause()

    def _go_on(self, pid: int, inside: Mapping[int, Turn]) -> None:
        # One after the other: what is inside again stays inside.
        if all(turn.place.state == "inside" or turn.enter() for turn in inside.values()):
            now = time.monotonic()
            self._inside_since.update(dict.fromkeys(inside, now))
            self._stopped = False
            processes.go_on(pid)

"""The host as a child knows it: its parent says whose turn it is."""

import json
import os
import threading
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any, Literal

_READ = 1 << 16


class Host:
    """Asks the parent for a turn, and hears when somebody wants to measure."""

    def __init__(self, tell: Callable[[dict[str, Any]], None]) -> None:
        self._tell = tell
        self._numbers = count(1)
        self._waiting: dict[int, threading.Event] = {}
        self._wanted = False

    def enter(self, side: Literal["working", "measuring"]) -> Callable[[], None]:
        """Wait for a side; give what lets go of it."""
        number, come = next(self._numbers), threading.Event()
        self._waiting[number] = come
        self._tell({"type": "turn", "turn": number, "side": side})
        come.wait()
        return partial(self._tell, {"type": "leave", "turn": number})

    def is_wanted(self) -> bool:
        """Tell whether somebody waits for this process's work to let go."""
        return self._wanted

    def listen(self, control: int) -> None:
        """Hear the parent out, and die with it."""
        heard = b""
        while part := os.read(control, _READ):
            *lines, heard = (heard + part).split(b"\n")
            for line in lines:
                said = json.loads(line)
                if "turn" in said:
                    self._waiting.pop(said["turn"]).set()
                else:
                    self._wanted = said["wanted"]
        os._exit(1)

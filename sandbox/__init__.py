"""A child process for every piece of work on bytes that we did not make."""

from sandbox.bytecode import compile_engine
from sandbox.fork_server import ForkServer
from sandbox.level import LEVELS, Confinement, Level
from sandbox.start import Order, Verb, devices, start
from sandbox.watch import Child, Limits, Outcome

__all__ = [
    "LEVELS",
    "Child",
    "Confinement",
    "ForkServer",
    "Level",
    "Limits",
    "Order",
    "Outcome",
    "Verb",
    "compile_engine",
    "devices",
    "start",
]

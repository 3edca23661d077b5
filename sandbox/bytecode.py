"""The engine's compiled form, written where a child finds it: a child that is locked down writes nothing beside its folder."""

import sys
from pathlib import Path

import engine


def compile_engine() -> bool:
    """Compile what has changed, where that is wanted and the folder can be written; gives whether all of it is compiled.

    Without it every child compiles all that it imports, which takes as long as the rest of its start.
    """
    if sys.dont_write_bytecode:
        return False
    # Children load this module too, and compile nothing.
    import compileall  # noqa: PLC0415

    return bool(compileall.compile_dir(Path(str(engine.__file__)).parent, quiet=2))

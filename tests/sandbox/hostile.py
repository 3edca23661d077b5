"""A child that does what a network can bring it to at worst: run any Python, from where foreign bytes are first touched."""

import sys
import textwrap

import sandbox

_SCRIPT = """
import os, sys, time, json
from pathlib import Path
import sandbox.child as child

def hostile(workspace, payload, tell):
    names = {"workspace": workspace, "payload": payload, "tell": tell, "os": os, "sys": sys, "time": time, "json": json,
             "Path": Path, "EVENTS": int(sys.argv[-2])}
    exec(compile((workspace / "hostile.py").read_text(), "hostile.py", "exec"), names)
    return names.get("answer", {})

child._VERBS["inspect_model"] = hostile
child.main(sys.argv[1:])
"""
_FORKING = _SCRIPT.replace("child.main", "import sandbox.forking\nsandbox.forking.main")
ROOMY = sandbox.Limits(runtime_s=60, memory_bytes=2 << 30)


def fork_server(folder, monkeypatch):
    """Give a fork server whose children run code; there `EVENTS` is no descriptor."""
    script = folder / "forking.py"
    script.write_text(_FORKING)
    monkeypatch.setattr(sandbox.fork_server, "_PROGRAM", ("-I", str(script)))
    return sandbox.ForkServer()


def start(tmp_path, monkeypatch, code, *, limits=ROOMY, server=None, **order):
    """Start a child that runs the code; names in it: workspace, payload, tell, EVENTS; `answer` is what it gives."""
    workspace = tmp_path / "work" / "attempt"
    (workspace / "tmp").mkdir(parents=True, exist_ok=True)
    (workspace / "hostile.py").write_text(textwrap.dedent(code))
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT)
    # The package has a function of that name.
    monkeypatch.setattr(sys.modules["sandbox.start"], "_CHILD", ("-I", str(script)))
    return sandbox.start(sandbox.Order("inspect_model", workspace, **order), limits=limits, server=server)

"""Hooks for schemathesis: objects that exist, and waits that are short."""

import os

import schemathesis

# A piece of a file is bytes, whatever it is called.
schemathesis.serializer.alias("application/offset+octet-stream", "application/octet-stream")
IDS = dict(pair.split("=") for pair in os.environ["EXISTING"].split(","))


@schemathesis.hook
def map_path_parameters(context, path_parameters):
    """Have one in two requests meet an object that exists."""
    for name in path_parameters or {}:
        if name in IDS and len(str(path_parameters[name])) % 2 == 0:
            path_parameters[name] = IDS[name]
    return path_parameters


@schemathesis.hook
def before_call(context, case, kwargs):
    """Wait for nothing, as nobody here would change it; and have jobs be about a model that exists."""
    wait = str((case.query or {}).get("wait", ""))
    if wait.replace(".", "", 1).isdecimal() and float(wait) <= 60:
        case.query["wait"] = 0
    if isinstance(case.body, dict) and str(case.body.get("model", "")).startswith("mdl_"):
        case.body["model"] = IDS["model_id"]
        case.body.pop("dataset", None)

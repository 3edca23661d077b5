"""`onnxpress-server`: every process of the service, and what its operators do."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from sqlalchemy.exc import OperationalError

from services.errors import ServiceError
from services.keys import DEFAULT_TENANT, SCOPES
from settings import Settings, get_settings
from settings.private_folder import keep_private
from standalone import broker, operations
from standalone.demo import demo
from standalone.docs import docs
from standalone.serve import AlreadyServedError, serve

_Run = Callable[[argparse.Namespace], int]


def main(argv: list[str] | None = None) -> int:
    """Run a verb and give its exit code."""
    keep_private()
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["worker"]:
        # It has options of its own.
        return operations.worker(words[1:])
    asked = _parser().parse_args(words)
    run: _Run = asked.run
    try:
        return run(asked)
    except (AlreadyServedError, broker.BrokerMissingError, ServiceError, TimeoutError) as error:
        print(f"onnxpress-server: {error}", file=sys.stderr)
    except OperationalError as error:
        print(f"onnxpress-server: the database does not answer: {error.orig}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    settings = get_settings()
    parser = argparse.ArgumentParser(
        prog="onnxpress-server", description="Compress ONNX networks on your own machines."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, text: str, run: _Run) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=text, description=text)
        made.set_defaults(run=run)
        return made

    _processes(verb, settings)
    _operations(verb, settings)
    documentation = verb("docs", "write the generated reference", lambda asked: docs(check=asked.check))
    documentation.add_argument("--check", action="store_true", help="only tell whether it is fresh")
    return parser


_Verb = Callable[[str, str, _Run], argparse.ArgumentParser]


def _processes(verb: _Verb, settings: Settings) -> None:
    serving = verb(
        "serve",
        "run broker, workers and API on this machine",
        lambda asked: serve(asked.data, host=asked.host, port=asked.port, workers=asked.workers),
    )
    _add_data(serving, settings)
    serving.add_argument("--host", default=settings.host)
    serving.add_argument("--port", type=int, default=settings.port, help="0 takes a free one (default: %(default)s)")
    serving.add_argument("--workers", type=int, default=1, help="jobs at the same time (default: %(default)s)")
    demonstration = verb("demo", "compress a bundled network and show the result", lambda asked: demo(asked.out))
    demonstration.add_argument(
        "--out", type=Path, default=Path("var/demo"), help="folder of the artifact and its report"
    )
    verb("api", "run one API process, on the database, the broker and the store of the settings", operations.api)
    verb("worker", "run one worker process; `worker --help` has its options", operations.api)


def _operations(verb: _Verb, settings: Settings) -> None:
    _add_data(verb("migrate", "bring the database to this version's revision", operations.migrate), settings)

    backing = verb("backup", "copy database and store while the service runs", operations.backup)
    backing.add_argument("path", type=Path, help="a folder, which a later backup brings up to date; or a new .tar file")
    _add_data(backing, settings)

    restoring = verb("restore", "put a backup into an empty database and store", operations.restore)
    restoring.add_argument("path", type=Path, help="what `backup` made")
    restoring.add_argument("--incomplete", action="store_true", help="also where bytes were damaged already")
    _add_data(restoring, settings)

    pruning = verb("prune", "remove now what the keep_ settings let go", operations.prune)
    pruning.add_argument("--dry-run", action="store_true", help="only count it")
    _add_data(pruning, settings)

    checking = verb("doctor", "look at every part of the service, and say what to do", operations.doctor)
    checking.add_argument("--json", action="store_true", help="for programs")
    _add_data(checking, settings)

    _keys(verb("keys", "make, list and revoke API keys", operations.list_keys), settings)


def _keys(parser: argparse.ArgumentParser, settings: Settings) -> None:
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(name: str, text: str, run: _Run) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=text, description=text)
        made.set_defaults(run=run)
        made.add_argument("--tenant", default=DEFAULT_TENANT, help="whose keys (default: %(default)s)")
        _add_data(made, settings)
        return made

    making = verb("create", "make a key and print it, this once", operations.create_key)
    making.add_argument("--name", default="operator", help="what it is for (default: %(default)s)")
    making.add_argument("--scope", action="append", choices=SCOPES, required=True, help="may be given more than once")
    making.add_argument("--days", type=float, help="how long it is valid (default: until it is revoked)")
    verb("list", "list the keys", operations.list_keys)
    verb("revoke", "end a key's validity", operations.revoke_key).add_argument("id")


def _add_data(parser: argparse.ArgumentParser, settings: Settings) -> None:
    parser.add_argument(
        "--data", type=Path, default=settings.data_dir, help="folder of all data (default: %(default)s)"
    )


if __name__ == "__main__":
    sys.exit(main())

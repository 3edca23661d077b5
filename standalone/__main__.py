"""`onnxpress-server`: every process of the service, and what its operators do."""

import argparse
import re
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from services.errors import ServiceError
from services.scopes import DEFAULT_TENANT, SCOPES
from settings import Settings, get_settings
from settings.private_folder import keep_private
from standalone import broker

# A century: beyond some of those the calendar ends.
_MOST_DAYS = 36_500
_Run = Callable[[argparse.Namespace], int]


def main(argv: list[str] | None = None) -> int:
    """Run a verb and give its exit code."""
    keep_private()
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["worker"]:
        # It has options of its own.
        return _worker(words[1:])
    return _done(_parser().parse_args(words))


# What a verb needs is loaded when it is asked for: to say what there is takes none of it, and no two verbs take the same.


def _worker(words: list[str]) -> int:
    from worker.__main__ import main as run  # noqa: PLC0415 - see above

    return run(words)


def _api(_asked: argparse.Namespace) -> int:
    from api.__main__ import main as run  # noqa: PLC0415 - see above

    run()
    return 0


def _serve(asked: argparse.Namespace) -> int:
    from standalone.serve import serve  # noqa: PLC0415 - see above

    return serve(asked.data, host=asked.host, port=asked.port, workers=asked.workers)


def _demo(asked: argparse.Namespace) -> int:
    from standalone.demo import demo  # noqa: PLC0415 - see above

    return demo(asked.out, get_settings().data_dir)


def _docs(asked: argparse.Namespace) -> int:
    from standalone.docs import docs  # noqa: PLC0415 - see above

    return docs(check=asked.check)


def _operation(name: str) -> _Run:
    """Give what does a verb of operators, by its name in their module."""

    def run(asked: argparse.Namespace) -> int:
        from standalone import operations  # noqa: PLC0415 - see above

        done: int = getattr(operations, name)(asked)
        return done

    return run


def _done(asked: argparse.Namespace) -> int:
    """Do what is asked for, or say in one line why it cannot be done."""
    from sqlalchemy.exc import OperationalError  # noqa: PLC0415 - see above

    from standalone.serve import AlreadyServedError  # noqa: PLC0415 - see above

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
    version = metadata.version("onnxpress-server")
    parser.add_argument("--version", action="version", version=version, help="show it")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, text: str, run: _Run) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=text, description=text)
        made.set_defaults(run=run)
        return made

    _processes(verb, settings)
    _operations(verb, settings)
    documentation = verb("docs", "write the generated reference", _docs)
    documentation.add_argument("--check", action="store_true", help="only tell whether it is fresh")
    return parser


_Verb = Callable[[str, str, _Run], argparse.ArgumentParser]


def _processes(verb: _Verb, settings: Settings) -> None:
    serving = verb(
        "serve",
        "run broker, workers and API on this machine",
        _serve,
    )
    _add_data(serving, settings)
    serving.add_argument(
        "--host",
        default=settings.host,
        help="address to listen at; 0.0.0.0: all of this machine's (default: %(default)s)",
    )
    serving.add_argument(
        "--port", type=int, default=settings.port, help="port to listen at; 0 takes a free one (default: %(default)s)"
    )
    serving.add_argument(
        "--workers", type=int, default=1, help="worker processes, so many jobs at the same time (default: %(default)s)"
    )
    demonstration = verb(
        "demo",
        "search for a goal on a bundled network and show the result",
        _demo,
    )
    demonstration.add_argument(
        "--out", type=Path, default=Path("var/demo"), help="folder of the artifact and its report"
    )
    verb("api", "run one API process, on the database, the broker and the store of the settings", _api)
    verb("worker", "run one worker process; `worker --help` has its options", _api)


def _operations(verb: _Verb, settings: Settings) -> None:
    _add_data(verb("migrate", "bring the database to this version's revision", _operation("migrate")), settings)

    backing = verb("backup", "copy database and store while the service runs", _operation("backup"))
    backing.add_argument("path", type=Path, help="a folder, which a later backup brings up to date; or a new .tar file")
    _add_data(backing, settings)

    restoring = verb("restore", "put a backup into an empty database and store", _operation("restore"))
    restoring.add_argument("path", type=Path, help="what `backup` made")
    restoring.add_argument("--incomplete", action="store_true", help="also where bytes were damaged already")
    _add_data(restoring, settings)

    pruning = verb("prune", "remove now what the settings ONNXPRESS_KEEP_... let go", _operation("prune"))
    pruning.add_argument("--dry-run", action="store_true", help="only count it")
    _add_data(pruning, settings)

    billing = verb("sbom", "list what this installation is made of, as CycloneDX", _operation("sbom"))
    billing.add_argument("--out", type=Path, help="file to write (default: print it)")

    checking = verb("doctor", "look at every part of the service, and say what to do", _operation("doctor"))
    checking.add_argument("--json", action="store_true", help="give one JSON document")
    _add_data(checking, settings)

    testing = verb(
        "selftest",
        "run a job through a service of this installation that is thrown away afterwards",
        _operation("selftest"),
    )
    testing.add_argument("--faults", action="store_true", help="also kill, stop and damage every part of it meanwhile")

    _tenants(verb("tenants", "make, list and limit tenants", _operation("list_tenants")), settings)
    _keys(verb("keys", "make, list and revoke API keys", _operation("list_keys")), settings)


def _keys(parser: argparse.ArgumentParser, settings: Settings) -> None:
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(name: str, text: str, run: _Run) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=text, description=text)
        made.set_defaults(run=run)
        made.add_argument("--tenant", default=DEFAULT_TENANT, help="whose keys (default: %(default)s)")
        _add_data(made, settings)
        return made

    making = verb("create", "make a key and print it, this once", _operation("create_key"))
    making.add_argument("--name", default="operator", help="what it is for (default: %(default)s)")
    making.add_argument("--scope", action="append", choices=SCOPES, required=True, help="may be given more than once")
    making.add_argument("--days", type=_days, help="how long it is valid (default: until it is revoked)")
    verb("list", "list the keys", _operation("list_keys"))
    revoking = verb("revoke", "end a key's validity", _operation("revoke_key"))
    revoking.add_argument("id", help="the key's, as `keys list` shows it")


def _tenants(parser: argparse.ArgumentParser, settings: Settings) -> None:
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(name: str, text: str, run: _Run, *, changes: bool = False) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=text, description=text)
        made.set_defaults(run=run)
        if name != "list":
            made.add_argument("id", type=_tenant_id if name == "create" else str, help="letters, digits, - and _")
        if changes:
            made.add_argument("--name", help="for people (default: the id)")
            for limit, (kind, most, meaning) in _TENANT_LIMITS.items():
                option = f"--{limit.replace('_', '-')}"
                made.add_argument(
                    option, type=_limit(kind, most), metavar="N", help=f"{meaning}; `default`: the service's"
                )
        _add_data(made, settings)
        return made

    verb(
        "create",
        "make a tenant; `keys create --tenant ID` makes its first key",
        _operation("create_tenant"),
        changes=True,
    )
    verb("list", "list the tenants with the limits of their own", _operation("list_tenants"))
    verb("show", "show what a tenant may have, and what it has of it", _operation("show_tenant"))
    setting = verb("set", "change what is named of a tenant", _operation("set_tenant"), changes=True)
    setting.add_argument("--suspend", action="store_true", default=None, dest="suspended", help="its keys open nothing")
    setting.add_argument("--resume", action="store_false", default=None, dest="suspended", help="they do again")


# Each with the kind of number, the most that the database holds or that means anything, and its meaning.
_TENANT_LIMITS: dict[str, tuple[type[int] | type[float], float, str]] = {
    "quota_bytes": (int, 1 << 60, "most stored bytes, 0 for any"),
    "quota_jobs": (int, 1e6, "most unfinished jobs, 0 for any"),
    "quota_cpu_s": (float, 1e9, "most seconds of processor time in the window, 0 for any"),
    "rate_per_s": (float, 1e6, "requests per second of all its keys together, 0 for any"),
    "rate_burst": (int, 1e6, "requests of all its keys at once"),
}


def _limit(kind: type[int] | type[float], most: float) -> Callable[[str], float | str]:
    def read(text: str) -> float | str:
        if text == "default":
            return text
        try:
            value = kind(text)
        except ValueError:
            value = -1
        if not 0 <= value <= most:
            raise argparse.ArgumentTypeError(f"{text}: give a number from 0 to {most:.0f}, or `default`")
        return value

    return read


def _tenant_id(text: str) -> str:
    if not re.fullmatch("[a-z0-9][a-z0-9_-]{0,62}", text):
        raise argparse.ArgumentTypeError("small letters, digits, - and _, at most 63 of them")
    return text


def _days(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= _MOST_DAYS:
        raise argparse.ArgumentTypeError(
            f"{text}: give days, more than 0 and at most {_MOST_DAYS}, or leave it out for ever"
        )
    return value


def _add_data(parser: argparse.ArgumentParser, settings: Settings) -> None:
    parser.add_argument(
        "--data", type=Path, default=settings.data_dir, help="folder of all data (default: %(default)s)"
    )


if __name__ == "__main__":
    sys.exit(main())

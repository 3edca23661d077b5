"""`onnxpress-server`: serve, demo and docs."""

import argparse
import sys
from pathlib import Path

from settings import get_settings
from standalone import broker
from standalone.demo import demo
from standalone.docs import docs
from standalone.serve import AlreadyServedError, serve


def main(argv: list[str] | None = None) -> int:
    """Run a verb and give its exit code."""
    asked = _parser().parse_args(argv)
    try:
        return _run(asked)
    except (AlreadyServedError, broker.BrokerMissingError, TimeoutError) as error:
        print(f"onnxpress-server: {error}", file=sys.stderr)
        return 1


def _run(asked: argparse.Namespace) -> int:
    if asked.verb == "serve":
        return serve(asked.data, host=asked.host, port=asked.port, workers=asked.workers)
    if asked.verb == "demo":
        return demo(asked.out)
    return docs(check=asked.check)


def _parser() -> argparse.ArgumentParser:
    settings = get_settings()
    parser = argparse.ArgumentParser(prog="onnxpress-server", description="Compress ONNX networks on your own machine.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    serving = verbs.add_parser("serve", help="run broker, workers and API on this machine")
    serving.add_argument(
        "--data", type=Path, default=settings.data_dir, help="folder of all data (default: %(default)s)"
    )
    serving.add_argument("--host", default=settings.host)
    serving.add_argument("--port", type=int, default=settings.port, help="0 takes a free one (default: %(default)s)")
    serving.add_argument("--workers", type=int, default=1, help="jobs at the same time (default: %(default)s)")
    demonstration = verbs.add_parser("demo", help="compress a bundled network and show the result")
    demonstration.add_argument(
        "--out", type=Path, default=Path("var/demo"), help="folder of the artifact and its report"
    )
    documentation = verbs.add_parser("docs", help="write the generated reference")
    documentation.add_argument("--check", action="store_true", help="only tell whether it is fresh")
    return parser


if __name__ == "__main__":
    sys.exit(main())

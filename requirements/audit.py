"""Hold the locked packages against the published vulnerabilities, where a service that knows them answers.

It ends with 1 where one of them has one that is known; where nobody answers it says that nothing was checked, and ends with 0.
"""

import json
import subprocess
import sys
from pathlib import Path

LOCKS = ("cpu.txt", "dev.txt")
# Somebody without a network does not wait for longer.
_LONGEST_S = 180


def main() -> int:
    """Ask, and tell what was found."""
    here = Path(__file__).parent
    command = [sys.executable, "-m", "pip_audit", "--disable-pip", "--require-hashes", "--format", "json"]
    command += ["--progress-spinner", "off", "--timeout", "10"]
    for lock in LOCKS:
        command += ["--requirement", str(here / lock)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LONGEST_S, check=False)
        told = json.loads(done.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError, KeyError):
        print("audit: no service that knows vulnerabilities answers; nothing was checked")
        return 0
    bad = list(found_in(told))
    for line in bad:
        print(f"audit: {line}")
    print(f"audit: {len(told)} packages, {len(bad)} known vulnerabilities")
    return int(bool(bad))


def found_in(packages: list[dict[str, object]]) -> list[str]:
    """Give a line for each vulnerability: the package, what it is called, and the versions that are mended."""
    lines = []
    for package in packages:
        known = package.get("vulns")
        for one in known if isinstance(known, list) else []:
            mended = ", ".join(one.get("fix_versions") or ()) or "no version yet"
            lines.append(f"{package['name']} {package.get('version')}: {one['id']}, mended in {mended}")
    return lines


if __name__ == "__main__":
    sys.exit(main())

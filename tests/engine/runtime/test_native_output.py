import os
import subprocess
import sys

import pytest

from engine.runtime.native_output import held_back


def test_what_goes_past_python_is_held_back(capfd):
    with held_back() as printed:
        os.write(2, b"[W:onnxruntime] a warning\n")
        os.write(1, b"a banner\n")
        sys.stdout.write("from Python\n")
    assert capfd.readouterr() == ("", "")
    assert sorted(printed.text.splitlines()) == ["[W:onnxruntime] a warning", "a banner", "from Python"]
    sys.stdout.write("again\n")
    assert capfd.readouterr().out == "again\n"


@pytest.mark.parametrize(("on_failure", "shown"), [("show", "the cause\n"), ("keep", "")])
def test_what_was_printed_before_a_failure_is_shown_unless_someone_reads_it(capfd, on_failure, shown):
    with pytest.raises(OSError, match="Bad file"), held_back(on_failure=on_failure) as printed:  # noqa: PT012
        os.write(2, b"the cause\n")
        os.write(-1, b"")
    assert printed.text == "the cause\n"
    assert capfd.readouterr().err == shown


def test_a_process_without_a_terminal_is_no_failure():
    script = "import os; os.close(1); os.close(2)\nfrom engine.runtime.native_output import held_back\nwith held_back(): pass"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0

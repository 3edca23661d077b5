"""The rule for steps that died: left out, but for those that go on from a checkpoint, which are tried once more."""

import pytest

from engine.job.frame import Blame, Frame
from engine.report.values import Refusal
from engine.runtime.host_lock import HostLock

BLAME = Blame(died="during this step", hint="report it", code="verification_failed")


@pytest.fixture
def attempt(tmp_path):
    def make(*, crashed, resumable):
        frame = Frame(tmp_path, lambda _event: None, HostLock(None), None, frozenset(crashed))
        return frame.attempt(2, "distill", lambda: "done", BLAME, resumable=resumable)

    return make


def test_what_killed_its_process_is_not_done_again(attempt):
    outcome = attempt(crashed={2}, resumable=False)
    assert isinstance(outcome, Refusal)
    assert "in an earlier attempt" in outcome.reason


def test_what_goes_on_from_a_checkpoint_is_tried_once_more_and_no_oftener(attempt):
    assert attempt(crashed=(), resumable=True) == "done"
    assert attempt(crashed={2}, resumable=True) == "done"
    outcome = attempt(crashed={2}, resumable=True)
    assert (outcome.code, outcome.hint) == ("crashed", "report it")
    assert "in two earlier attempts" in outcome.reason


def test_another_steps_crash_is_no_matter(attempt):
    assert attempt(crashed={1}, resumable=False) == "done"

"""A worker advertises what really ran a network here, and says of the rest why not."""

import os
import signal
import socket
import sys
import time
from importlib import metadata

import pytest

import sandbox
from services import routing, workers
from worker import proof
from worker.__main__ import _parser
from worker.presence import Identity, Presence
from worker.proof import Proof, prove

PATIENCE_S = 240.0


def test_every_provider_is_proven_or_has_a_reason(tmp_path):
    found = prove(tmp_path)
    proven = {target["provider"]: target for target in found.targets}
    assert proven["cpu"]["distribution"] == "onnxruntime"
    assert "reason" not in proven["cpu"]
    training = proven["cpu"]["training"]
    assert (training["available"], training["device"], training["reason"]) == (True, "cpu", None)
    assert training["torch"] == metadata.version("torch")
    why = {one["provider"]: one for one in found.unavailable}
    assert "built without" in why["cuda"]["reason"]
    assert not why["cuda"]["listed"]
    assert found.cores >= 1
    assert list(tmp_path.iterdir()) == []


def test_who_only_looks_at_uploads_tells_how_its_children_are_confined(tmp_path):
    found = prove(tmp_path, ())
    assert (found.targets, found.unavailable) == ((), ())
    assert found.isolation != "unknown"
    assert found.cores >= 1


def test_a_worker_without_pytorch_says_so_and_what_installs_it(tmp_path, python_without_torch, monkeypatch):
    monkeypatch.setattr(sys, "executable", python_without_torch)
    monkeypatch.setattr(proof.engine, "PROVIDER_NAMES", ("cpu",))
    [target] = prove(tmp_path).targets
    assert target["provider"] == "cpu"
    assert target["training"]["available"] is False
    assert "pip install 'onnxpress-server[train]'" in target["training"]["reason"]
    assert routing.run_queues(target) == ["run.cpu"]


def test_a_worker_that_is_not_to_train_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(proof.engine, "PROVIDER_NAMES", ("cpu",))
    [target] = prove(tmp_path, trains=False).targets
    assert target["training"] == {
        "available": False,
        "reason": "This worker was told not to train (ONNXPRESS_WORKER_TRAINING).",
    }
    assert routing.run_queues(target) == ["run.cpu"]


def test_a_pytorch_that_ends_its_process_costs_no_provider(tmp_path, monkeypatch):
    start = sandbox.start

    def start_and_kill(order, *, limits):
        child = start(order, limits=limits)
        if order.verb == "training":
            os.kill(child.pid, signal.SIGSEGV)
        return child

    monkeypatch.setattr(sandbox, "start", start_and_kill)
    monkeypatch.setattr(proof.engine, "PROVIDER_NAMES", ("cpu",))
    [target] = prove(tmp_path).targets
    assert "ends the process" in target["training"]["reason"]
    assert target["training"]["available"] is False


def test_a_provider_that_ends_its_process_costs_no_other_one(tmp_path, monkeypatch):
    """A driver may end the process that loads it: here the child of every question about CUDA is killed."""
    start = sandbox.start

    def start_and_kill(order, *, limits):
        child = start(order, limits=limits)
        if "cuda" in order.payload.get("providers", ()):
            os.kill(child.pid, signal.SIGSEGV)
        return child

    monkeypatch.setattr(sandbox, "start", start_and_kill)
    monkeypatch.setattr(proof.engine, "PROVIDER_NAMES", ("cpu", "cuda"))
    found = prove(tmp_path)
    assert [target["provider"] for target in found.targets] == ["cpu"]
    assert [(one["provider"], one["listed"]) for one in found.unavailable] == [("cuda", True)]
    assert "ends the process" in found.unavailable[0]["reason"]


@pytest.mark.parametrize(
    ("proven", "asked", "taken"),
    [
        (["cpu"], "own", ["cpu"]),
        (["cpu", "openvino"], "own", ["openvino"]),
        (["cpu", "openvino"], "all", ["cpu", "openvino"]),
        (["cpu", "openvino"], "cpu", ["cpu"]),
        (["cpu", "cuda"], "tensorrt", []),
        ([], "own", []),
    ],
)
def test_which_jobs_a_worker_takes(proven, asked, taken):
    found = Proof(tuple({"provider": name} for name in proven)).taking(asked)
    assert [target["provider"] for target in found.targets] == taken


@pytest.mark.parametrize("words", [["--queues", "work,run.cpu"], ["--targets", "cpu,cdua"], ["--targets", ""]])
def test_what_nobody_knows_is_refused_at_the_start(words, settings, capsys):
    with pytest.raises(SystemExit) as ended:
        _parser(settings).parse_args(words)
    assert ended.value.code == 2
    assert "there is" in capsys.readouterr().err


def test_presence_tells_of_life_of_drain_and_of_the_end(database):
    draining = []
    lacking = {"provider": "cuda", "listed": True, "reason": "no driver"}
    told = Proof(({"provider": "cpu", "device": "cpu"},), (lacking,), proof.UNKNOWN, 2)
    me = Identity("wrk_1", socket.gethostname(), 1, ("run.cpu",), 2, told)
    presence = Presence(database, me, lambda: bool(draining))
    presence.start()

    def until(state):
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            with database.reading() as session:
                found = [(seen.state, seen.worker.concurrency, seen.worker.cores) for seen in workers.listed(session)]
            if found == [(state, 2, 2)]:
                return
            time.sleep(0.05)
        raise AssertionError(found)

    until("live")
    with database.reading() as session:
        assert workers.targets(session)[0]["live"]
        assert workers.unavailable(session)[0]["reason"] == "no driver"
    draining.append(True)
    until("draining")
    presence.stop(leave=True)
    until("gone")

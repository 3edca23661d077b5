"""A report as one HTML file that opens anywhere: its figures, their numbers as tables, and nothing from outside."""

import json
from collections.abc import Iterable, Iterator, Sequence
from html import escape

from engine.report.figures.figure import Figure
from engine.report.figures.layers import Layer, layers
from engine.report.figures.of_report import figures
from engine.report.heading import Heading
from engine.report.markdown import headline
from engine.report.values import AnyReport, GateResult, Report
from engine.report.wording import MARKS, limit_value, machine

_STYLE = """
:root{color-scheme:light dark;--back:#fff;--fore:#1b1f24;--quiet:#5c6570;--line:#d8dee4;--card:#f6f8fa;
--chart-original:#8c96a1;--chart-compressed:#2563eb;--chart-good:#15803d;--chart-bad:#c2410c;--chart-unsure:#a16207;
--chart-quiet:#9aa4af;--chart-accent:#7c3aed}
@media(prefers-color-scheme:dark){:root{--back:#0f1318;--fore:#e6edf3;--quiet:#9aa7b4;--line:#2d343c;--card:#171c22;
--chart-original:#8b98a5;--chart-compressed:#60a5fa;--chart-good:#4ade80;--chart-bad:#fb923c;--chart-unsure:#facc15;
--chart-quiet:#6b7784;--chart-accent:#c4b5fd}}
*{box-sizing:border-box}body{margin:0;background:var(--back);color:var(--fore);font:16px/1.5 system-ui,sans-serif}
main{max-width:64rem;margin:0 auto;padding:2rem 1rem}h1{font-size:1.6rem;margin:0 0 .25rem}h2{font-size:1.2rem;margin:2.5rem 0 .25rem}
.facts,.caption,footer{color:var(--quiet)}.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.9rem}
th,td{text-align:left;vertical-align:top;padding:.35rem .6rem;border-bottom:1px solid var(--line);overflow-wrap:anywhere}
details{margin:.5rem 0}summary{cursor:pointer}.figure{width:100%}.warning{background:var(--card);border-left:4px solid var(--chart-unsure);
padding:.5rem .75rem;margin:.5rem 0}.pass{color:var(--chart-good)}.fail{color:var(--chart-bad)}.inconclusive{color:var(--chart-unsure)}
footer{margin-top:3rem;border-top:1px solid var(--line);padding-top:1rem;font-size:.85rem}
"""
# Colours are named in the figures: each scheme has its own, and changes them while the file is open.
_SCRIPT = """
const figures = JSON.parse(document.getElementById("figures").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
function coloured(value, style) {
  if (typeof value === "string") {
    const named = /^var\\((--[a-z-]+)\\)$/.exec(value);
    return named ? style.getPropertyValue(named[1]).trim() : value;
  }
  if (Array.isArray(value)) return value.map((one) => coloured(one, style));
  if (value && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([name, one]) => [name, coloured(one, style)]));
  }
  return value;
}
function draw() {
  const style = getComputedStyle(document.documentElement);
  const fore = style.getPropertyValue("--fore").trim(), line = style.getPropertyValue("--line").trim();
  for (const figure of figures) {
    const layout = coloured(figure.layout, style);
    for (const name of Object.keys(layout)) if (/^[xy]axis/.test(name)) layout[name] = { gridcolor: line, zerolinecolor: line, ...layout[name] };
    Plotly.react(figure.name, coloured(figure.data, style), {
      margin: { t: 10, r: 10 }, ...layout, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: fore, family: "system-ui, sans-serif", size: 13 },
    }, { responsive: true, displaylogo: false, displayModeBar: false });
  }
}
draw();
dark.addEventListener("change", draw);
"""


def report_page(report: AnyReport, heading: Heading | None, plotly: str) -> str:
    """Give the whole page.

    Args:
        report: what was measured.
        heading: which job it is shown for.
        plotly: the text of `plotly.min.js`, which draws the figures.
    """
    shown = figures(report)
    outcome = report.verdict.outcome
    title = f"{'Profile' if report.kind == 'profile' else 'Compression report'}: {MARKS[outcome]}"
    parts = [
        f'<h1>{escape(title.partition(":")[0])}: <span class="{outcome}">{MARKS[outcome]}</span></h1>',
        _facts(heading),
        f"<p>{escape(report.summary)}</p>",
        *_warnings(report.warnings),
    ]
    if isinstance(report, Report):
        parts.append(_table(("", "original", "compressed", "change"), headline(report)))
    if report.verdict.gates:
        parts += ["<h2>Gates</h2>", _table(("gate", "outcome", "reason"), map(_gate, report.verdict.gates))]
    parts += [_figure(figure) for figure in shown]
    if isinstance(report, Report) and (found := layers(report)):
        parts += ["<h2>Layers</h2><details><summary>What became of each</summary>", _layers(found), "</details>"]
    parts.append(f"<footer>{escape(_where(report))}</footer>")
    data = [{"name": one.name, "data": one.data, "layout": one.layout} for one in shown]
    return "".join(
        (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width,initial-scale=1">',
            f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><main>",
            *parts,
            f'</main><script type="application/json" id="figures">{_json(data)}</script>',
            f"<script>{plotly}</script><script>{_SCRIPT}</script></body></html>\n",
        )
    )


def _facts(heading: Heading | None) -> str:
    if heading is None:
        return ""
    told = ", ".join(value if name == "ended" else f"{name} {value}" for name, value in heading.facts())
    link = f' <a href="{escape(heading.link)}">in the service</a>' if heading.link else ""
    return f'<p class="facts">{escape(told)}{link}</p>'


def _warnings(warnings: Iterable[str]) -> Iterator[str]:
    for warning in warnings:
        yield f'<p class="warning">{escape(warning)}</p>'


def _gate(result: GateResult) -> tuple[str, ...]:
    gate = result.gate
    where = "" if result.target is None else f" on target {result.target + 1}"
    softened = " (warning only)" if gate.level == "warn" else ""
    return f"{gate.label} {gate.rule} {limit_value(gate.value)}{where}", MARKS[result.outcome] + softened, result.reason


def _figure(figure: Figure) -> str:
    table = _table(figure.head, figure.rows)
    return (
        f'<section><h2>{escape(figure.title)}</h2><p class="caption" id="{figure.name}-caption">{escape(figure.caption)}</p>'
        f'<div class="figure" id="{figure.name}" role="img" aria-labelledby="{figure.name}-caption"></div>'
        f"<details><summary>The numbers</summary>{table}</details></section>"
    )


def _layers(found: Sequence[Layer]) -> str:
    """Give a row for each layer; columns that no layer has are left out."""
    columns = {
        "layer": [layer.node for layer in found],
        "operator": [layer.op for layer in found],
        "precision": [layer.precision for layer in found],
        "time before": [_share(layer.time_before) for layer in found],
        "time after": [_share(layer.time_after) for layer in found],
        "SQNR": [f"{layer.sqnr_db:.1f} dB" if layer.sqnr_db is not None else "" for layer in found],
        "sensitivity": [f"{layer.sensitivity:.3g}" if layer.sensitivity is not None else "" for layer in found],
        "zeros": [_share(layer.zeros) for layer in found],
        "what happened": [layer.told for layer in found],
    }
    kept = {name: cells for name, cells in columns.items() if any(cells)}
    return _table(tuple(kept), zip(*kept.values(), strict=True))


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _where(report: AnyReport) -> str:
    if isinstance(report, Report):
        target = report.target
        load = f"{target.provider}, {target.threads} thread(s), batch {target.batch}"
        return f"Measured on {machine(report.environment)}, {load}, ONNX Runtime {report.environment.onnxruntime}."
    found = dict.fromkeys(machine(one.measured.environment) for one in report.targets if one.measured is not None)
    return f"Measured on {'; '.join(found)}." if found else "Nothing was measured."


def _json(value: object) -> str:
    """Write JSON that no HTML parser takes for the end of its script."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")

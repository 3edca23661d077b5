"""A report as one HTML file that opens anywhere: its figures, their numbers as tables, and nothing from outside."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape

from engine.report.figures.figure import Figure
from engine.report.figures.layers import LAYERS_CAPTION, layer_table
from engine.report.figures.of_report import figures
from engine.report.figures.search import PICK
from engine.report.heading import Heading
from engine.report.markdown import headline
from engine.report.unfinished import Unfinished
from engine.report.values import AnyReport, GateResult, Report
from engine.report.wording import CONFIDENCE, MARKS, gate_text, machine, target_name, target_names

_STYLE = """
:root{color-scheme:light dark;--back:#fff;--fore:#1b1f24;--quiet:#5c6570;--line:#d8dee4;--card:#f6f8fa;
--chart-original:#8c96a1;--chart-compressed:#2563eb;--chart-good:#15803d;--chart-bad:#c2410c;--chart-unsure:#a16207;
--chart-quiet:#9aa4af;--chart-accent:#7c3aed}
@media(prefers-color-scheme:dark){:root{--back:#0f1318;--fore:#e6edf3;--quiet:#9aa7b4;--line:#2d343c;--card:#171c22;
--chart-original:#8b98a5;--chart-compressed:#60a5fa;--chart-good:#4ade80;--chart-bad:#fb923c;--chart-unsure:#facc15;
--chart-quiet:#6b7784;--chart-accent:#c4b5fd}}
*{box-sizing:border-box}body{margin:0;background:var(--back);color:var(--fore);font:16px/1.5 system-ui,sans-serif}
main{max-width:64rem;margin:0 auto;padding:2rem 1rem}h1{font-size:1.6rem;margin:0 0 .25rem}h2{font-size:1.2rem;margin:2.5rem 0 .25rem}
h3{font-size:1rem;margin:1.5rem 0 .25rem}.beside{border-top:1px solid var(--line);margin-top:3rem;padding-top:2rem}
.facts,.caption,footer{color:var(--quiet)}.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.9rem}
th,td{text-align:left;vertical-align:top;padding:.35rem .6rem;border-bottom:1px solid var(--line);overflow-wrap:break-word}.short{white-space:nowrap}
thead th{white-space:nowrap}h1,h2,p{overflow-wrap:anywhere}a{color:var(--chart-compressed)}
@media(max-width:480px){main{padding:1.25rem .75rem}table{font-size:.8rem}th,td{padding:.3rem .35rem}thead th{white-space:normal}
td:not(.short){min-width:8rem}.stacked thead{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
.stacked tr{display:flex;flex-wrap:wrap;gap:.2rem .6rem;justify-content:space-between;padding:.5rem 0;border-bottom:1px solid var(--line)}
.stacked td{border:0;padding:0;min-width:0}.stacked td:last-child{flex-basis:100%}}
details{margin:.5rem 0}summary{cursor:pointer}.chart{width:100%;overflow:hidden}.warning{background:var(--card);border-left:4px solid var(--chart-unsure);
padding:.5rem .75rem;margin:.5rem 0}.pass{color:var(--chart-good)}.fail{color:var(--chart-bad)}.inconclusive{color:var(--chart-unsure)}
footer{margin-top:3rem;border-top:1px solid var(--line);padding-top:1rem;font-size:.85rem}
"""
# Letters of a cell that is not broken into lines.
_SHORT = 15
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
// Plotly's own way of following its place forgets how high a figure is.
const widths = new ResizeObserver((entries) => {
  for (const { target } of entries) if (target.clientWidth !== target.layout?.width) draw(byName.get(target.id));
});
const byName = new Map(figures.map((figure) => [figure.name, figure]));
function draw(figure) {
  const style = getComputedStyle(document.documentElement), place = document.getElementById(figure.name);
  const fore = style.getPropertyValue("--fore").trim(), line = style.getPropertyValue("--line").trim();
  const layout = coloured(figure.layout, style);
  for (const name of Object.keys(layout)) if (/^[xy]axis/.test(name)) {
    layout[name] = { gridcolor: line, zerolinecolor: line, fixedrange: true, ...layout[name] };
    if (place.clientWidth < 480) layout[name].tickfont = { size: 10 };
  }
  for (const shape of layout.shapes ?? []) shape.line = { color: fore, width: 1, ...shape.line };
  place.style.height = `${layout.height}px`;
  Plotly.react(place, coloured(figure.data, style), {
    margin: { l: 8, r: 12, t: layout.legend && figure.data.length > 1 ? 56 : 16, b: 36 }, hoverlabel: { align: "left" }, ...layout,
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", width: place.clientWidth, autosize: false,
    font: { color: fore, family: "system-ui, sans-serif", size: 12 },
  }, { displaylogo: false, displayModeBar: false }).then(() => widths.observe(place));
}
const drawAll = () => figures.forEach(draw);
drawAll();
dark.addEventListener("change", drawAll);
"""


def report_page(
    report: AnyReport,
    heading: Heading | None,
    plotly: str,
    *,
    beside: tuple[AnyReport, Heading | None] | None = None,
) -> str:
    """Give the whole page.

    Args:
        report: what was measured.
        heading: which job it is shown for.
        plotly: the text of `plotly.min.js`, which draws the figures.
        beside: of the same result beside the network that it is to replace, whose figures come last.
    """
    shown = figures(report)
    outcome = report.verdict.outcome
    kind = "Profile" if report.kind == "profile" else "Compression report"
    parts = [
        f'<h1>{kind}: <span class="{outcome}">{MARKS[outcome]}</span></h1>',
        *_told(report, heading),
        *map(_figure, shown),
    ]
    if isinstance(report, Report) and (found := layer_table(report))[1]:
        parts += [f'<h2>Layers</h2><p class="caption">{LAYERS_CAPTION}</p>', _table("Layers", *found)]
    if beside is not None:
        more = [figure.model_copy(update={"name": f"beside-{figure.name}"}) for figure in figures(beside[0])]
        mark = beside[0].verdict.outcome
        parts.append(f'<h2 class="beside">Beside what it is to replace: <span class="{mark}">{MARKS[mark]}</span></h2>')
        parts += [*_told(*beside), *map(_figure, more)]
        shown = (*shown, *more)
    parts.append(f"<footer>{escape(_where(report))}</footer>")
    data = [{"name": one.name, "data": one.data, "layout": one.layout} for one in shown]
    drawn = f'<script type="application/json" id="figures">{_json(data)}</script><script>{plotly}</script><script>{_SCRIPT}</script>'
    return _document(f"{kind}: {MARKS[outcome]}", parts, drawn)


def unfinished_page(job: Unfinished, heading: Heading | None) -> str:
    """Give the page of a job that ended without a result: that, and why."""
    parts = [f"<h1>{escape(job.title)}</h1>", _facts(heading), f'<p class="warning">{escape(job.said)}</p>']
    parts += [f"<p>{escape(job.hint)}</p>"] if job.hint else []
    parts += [f'<p class="facts">Code: <code>{escape(job.code)}</code>.</p>'] if job.code else []
    return _document(job.title, parts, "")


def _document(title: str, parts: Iterable[str], scripts: str) -> str:
    return "".join(
        (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width,initial-scale=1">',
            f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><main>",
            *parts,
            f"</main>{scripts}</body></html>\n",
        )
    )


def _told(report: AnyReport, heading: Heading | None) -> Iterator[str]:
    """Yield what comes before the figures: the result in words, its main rows and its gates."""
    yield _facts(heading)
    yield f"<p>{escape(report.summary)}</p>"
    yield from _warnings(report.warnings)
    if isinstance(report, Report):
        yield _table("What changed", ("", "original", "compressed", "change"), headline(report))
    if report.verdict.gates:
        named = target_names(report)
        rows = [_gate(result, named) for result in report.verdict.gates]
        yield "<h3>Gates</h3>" + _table("Gates", ("gate", "outcome", "reason"), rows, stacked=True)


def _facts(heading: Heading | None) -> str:
    if heading is None:
        return ""
    told = ", ".join(value if name == "ended" else f"{name} {value}" for name, value in heading.facts())
    link = f' <a href="{escape(heading.link)}">in the service</a>' if heading.link else ""
    return f'<p class="facts">{escape(told)}{link}</p>'


def _warnings(warnings: Iterable[str]) -> Iterator[str]:
    for warning in warnings:
        yield f'<p class="warning">{escape(warning)}</p>'


def _gate(result: GateResult, targets: Mapping[int, str]) -> tuple[str, ...]:
    where = "" if result.target is None else f" on {targets.get(result.target, result.target)}"
    softened = " (warning only)" if result.gate.level == "warn" else ""
    return f"{gate_text(result.gate)}{where}", MARKS[result.outcome] + softened, result.reason


def _figure(figure: Figure) -> str:
    table = _table(f"Numbers of {figure.title}", figure.head, figure.rows)
    return (
        f'<section><h2>{escape(figure.title)}</h2><p class="caption" id="{figure.name}-caption">{escape(figure.caption.removesuffix(PICK))}</p>'
        f'<div class="chart" id="{figure.name}" role="img" aria-labelledby="{figure.name}-caption"></div>'
        f"<details><summary>The numbers</summary>{table}</details></section>"
    )


def _table(name: str, head: Sequence[str], rows: Iterable[Sequence[str]], *, stacked: bool = False) -> str:
    """Give a table; `stacked`: on a phone its last cells go below the others, which takes away what rows and cells are: it is said."""

    def role(name: str) -> str:
        return f' role="{name}"' if stacked else ""

    top = "".join(f'<th scope="col"{role("columnheader")}>{escape(cell)}</th>' for cell in head)
    body = "".join(f"<tr{role('row')}>{''.join(_cell(cell, role('cell')) for cell in row)}</tr>" for row in rows)
    inside = f'<div class="scroll" tabindex="0" role="group" aria-label="{escape(name)}">'
    table = f'<table class="stacked"{role("table")}>' if stacked else "<table>"
    group = role("rowgroup")
    return f"{inside}{table}<thead{group}><tr{role('row')}>{top}</tr></thead><tbody{group}>{body}</tbody></table></div>"


def _cell(text: str, role: str) -> str:
    # Figures with their units stay in a line.
    short = ' class="short"' if len(text) < _SHORT else ""
    return f"<td{short}{role}>{escape(text)}</td>"


def _where(report: AnyReport) -> str:
    if isinstance(report, Report):
        where, load = report.environment, target_name(report.target)
        return f"Measured on {machine(where)}, {load}, ONNX Runtime {where.onnxruntime}. {CONFIDENCE}"
    found = dict.fromkeys(machine(one.measured.environment) for one in report.targets if one.measured is not None)
    return f"Measured on {'; '.join(found)}." if found else "Nothing was measured."


def _json(value: object) -> str:
    """Write JSON that no HTML parser takes for the end of its script."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")

"""The funnel as one self-contained page: no script, no file beside it."""

# ruff: noqa: E501  (lines of HTML and CSS)

from __future__ import annotations

from collections import Counter
from datetime import datetime, timezone
from pathlib import Path

from data_pipeline.report.charts import histogram_chart, hours_text, number, percent, size_text, time_charts
from data_pipeline.report.funnel import group_of
from data_pipeline.report.outcomes import SUCCESS

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Funnel of {{ name }}</title>
<style>
:root { --ink: #1c2430; --soft: #5b6673; --line: #e3e7ec; --keep: #2f6fde; --lost: #d9822b; --paper: #fff; --wash: #f5f7fa; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--wash); color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 24px 48px; }
h1 { font-size: 26px; margin: 0 0 4px; overflow-wrap: anywhere; } h2 { font-size: 17px; margin: 0 0 12px; } h3 { font-size: 14px; margin: 0 0 2px; }
p { margin: 0 0 8px; color: var(--soft); }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 20px 22px; margin-top: 18px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)); gap: 14px; margin-top: 18px; }
.tile { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px; } section .tile { background: var(--wash); border: 0; }
.tile b { display: block; font-size: 24px; font-variant-numeric: tabular-nums; } .tile span { color: var(--soft); font-size: 13px; }
.row { display: grid; grid-template-columns: 230px 1fr 170px; gap: 14px; align-items: center; padding: 3px 0; }
.row .name { overflow-wrap: anywhere; }
.row .n { text-align: right; font-variant-numeric: tabular-nums; } .row .n small { color: var(--soft); display: inline-block; min-width: 58px; }
.track { background: var(--wash); border-radius: 4px; height: 18px; overflow: hidden; display: flex; }
.bar { height: 100%; background: var(--keep); border-radius: 4px; min-width: 2px; } .track .part { height: 100%; }
.stage { font-weight: 600; padding-top: 8px; } .stage .track { height: 26px; }
.loss { font-size: 14px; } .loss .name { padding-left: 18px; color: var(--soft); } .loss .track { height: 10px; } .loss .bar { background: var(--lost); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(400px, 100%), 1fr)); gap: 22px 26px; } .charts p { font-size: 13px; }
svg { display: block; width: 100%; max-width: 620px; } svg text { font: 12px system-ui, sans-serif; fill: var(--soft); } .grid { stroke: var(--line); } .axis { stroke: #9aa5b1; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: 14px; }
th { text-align: right; font-size: 13px; font-weight: 600; color: var(--soft); padding: 4px 8px; border-bottom: 1px solid var(--line); vertical-align: bottom; max-width: 200px; overflow-wrap: break-word; }
td { text-align: right; padding: 5px 8px; border-bottom: 1px solid var(--wash); font-variant-numeric: tabular-nums; white-space: nowrap; } th:first-child, td:first-child, .left { text-align: left; } td:first-child, td.left { white-space: normal; } td:first-child { min-width: 120px; }
td small { color: var(--soft); display: inline-block; min-width: 52px; } td .track { height: 6px; margin-top: 2px; } td .track.tall { height: 14px; } td.host { overflow-wrap: anywhere; min-width: 150px; max-width: 300px; }
tr.total td { font-weight: 600; } tr.lost td { font-size: 13px; color: var(--soft); padding-top: 2px; padding-bottom: 2px; } tr.lost td:first-child { padding-left: 22px; } tr.lost .bar { background: var(--lost); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; font-size: 13px; color: var(--soft); margin-bottom: 8px; } .legend i { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 6px; }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); gap: 16px; }
figure { margin: 0; } figure img { width: 100%; height: 180px; object-fit: contain; background: var(--wash); border-radius: 6px; }
figcaption { font-size: 13px; margin-top: 6px; overflow-wrap: anywhere; } figcaption small { color: var(--soft); }
code { font-size: 13px; overflow-wrap: anywhere; } .bad { color: #b3261e; }
@media (max-width: 760px) { main { padding: 20px 14px 32px; } .row { grid-template-columns: 150px 1fr 150px; gap: 10px; } .wide { display: none; }
.scroll th:first-child, .scroll td:first-child { position: sticky; left: 0; background: var(--paper); } }
@media (max-width: 480px) { .row { grid-template-columns: 1fr; gap: 2px; } .row .n { text-align: left; }
.hosts, .hosts tbody { display: block; } .hosts tr { display: grid; grid-template-columns: 1fr 1.3fr 1fr; gap: 2px 10px; padding: 8px 0; border-bottom: 1px solid var(--line); } .hosts tr:first-child { display: none; }
.hosts td { text-align: left; padding: 0; border: 0; } .hosts td.host, .hosts td.left { grid-column: 1 / -1; max-width: none; } .hosts td.wide { display: block; color: var(--soft); } .hosts td[data-label]::before { content: attr(data-label) " "; color: var(--soft); } }
</style></head><body><main>
{% macro tile_row(tiles) %}<div class="tiles">
{% for value, label in tiles %}<div class="tile"><b>{{ value }}</b><span>{{ label }}</span></div>
{% endfor %}</div>{% endmacro %}
{% macro bar_row(entry, kind) %}<div class="row {{ kind }}"><div class="name">{{ entry.name }}</div><div class="track"><div class="bar" style="width:{{ entry.width }}%"></div></div>
<div class="n">{{ entry.count | n }} <small>{{ entry.share }}</small></div></div>
{% endmacro %}
{% macro chart(c) %}<div><h3>{{ c.title }}</h3><p>{{ c.said }}</p>{% if c.ticks %}
<svg viewBox="0 0 {{ c.width }} {{ c.height }}" role="img" aria-label="{{ c.title }}">
<text x="{{ c.left }}" y="12">{{ c.y_label }}</text>
{% for y, label in c.ticks.y %}<line class="grid" x1="{{ c.left }}" x2="{{ c.right }}" y1="{{ y }}" y2="{{ y }}"/><text x="{{ c.left - 7 }}" y="{{ y + 4 }}" text-anchor="end">{{ label }}</text>
{% endfor %}{% for bar in c.bars %}<rect x="{{ bar.x }}" y="{{ bar.y }}" width="{{ bar.w }}" height="{{ bar.h }}" fill="#2f6fde" fill-opacity="{{ c.opacity }}"><title>{{ bar.title }}</title></rect>
{% endfor %}{% for path in c.paths %}<path d="{{ path }}" fill="none" stroke="#2f6fde" stroke-width="2"/>
{% endfor %}<line class="axis" x1="{{ c.left }}" x2="{{ c.right }}" y1="{{ c.base }}" y2="{{ c.base }}"/>
{% for x, label in c.ticks.x %}<line class="axis" x1="{{ x }}" x2="{{ x }}" y1="{{ c.base }}" y2="{{ c.base + 4 }}"/><text x="{{ x }}" y="{{ c.base + 18 }}" text-anchor="middle">{{ label }}</text>
{% endfor %}<text x="{{ (c.left + c.right) / 2 }}" y="{{ c.height - 4 }}" text-anchor="middle">{{ c.x_label }}</text></svg>{% endif %}</div>
{% endmacro %}
{% macro side_by_side(table) %}<div class="scroll"><table><tr><th></th>{% for title in table.titles %}<th>{{ title }}</th>{% endfor %}</tr>
{% for line in table.lines %}<tr class="{{ line.kind }}"><td>{{ line.name }}</td>{% for cell in line.cells %}<td>{% if cell.count %}{{ cell.count | n }} <small>{{ cell.share }}</small><div class="track"><div class="bar" style="width:{{ cell.width }}%"></div></div>{% else %}-{% endif %}</td>{% endfor %}</tr>
{% endfor %}</table></div>{% endmacro %}
<h1>{{ name }}</h1>
<p>From catalogue rows to samples that may be trained on. Source: {{ funnel.source }}. Blue is what goes on, orange is what was left behind and why.</p>
{{ tile_row(tiles) }}
{% for title, table in tables %}<section><h2>{{ title }}</h2>{{ side_by_side(table) }}
<p style="margin-top:12px">Shares of stages are of all rows of their column, shares of losses of the rows of their stage.</p></section>
{% endfor %}
<section><h2>The funnel{% if tables %} in total{% endif %}</h2>
{% for stage in stages %}{{ bar_row(stage, "stage") }}{% for loss in stage.losses %}{{ bar_row(loss, "loss") }}{% endfor %}{% endfor %}
<p style="margin-top:12px">Shares of stages are of all rows, shares of losses of the rows of their stage. The orange bars of a stage
together make its whole loss.</p>
</section>
{% if funnel.damaged_shards %}<section><h2 class="bad">Damaged shards, left out</h2>
{% for entry in funnel.damaged_shards %}<p><code>{{ entry.path }}</code> {{ entry.reason }}</p>{% endfor %}</section>{% endif %}
{% if projection %}<section><h2>If the full catalogue went like this</h2>
<p>{{ projection.said }}</p>{{ tile_row(projection.tiles) }}
{% if projection.sources %}<div class="scroll" style="margin-top:14px"><table><tr><th>source</th><th>rows</th><th>kept</th><th>95 % interval</th><th>tars</th><th>job hours</th></tr>
{% for line in projection.sources %}<tr>{% for cell in line %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}</table></div>{% endif %}
<p style="margin-top:12px">This assumes that the rows are a random sample of the catalogue; the 95 % interval (Wilson's) holds the chance of that draw only.
Links that die until then, another network, and duplicates that show only among more rows are not in it: take the samples as an upper bound.</p></section>{% endif %}
<section><h2>Why pictures did not arrive</h2>
{% if statuses %}<p>By exact message, as a share of the {{ funnel.requested | n }} rows requested.</p>
{% for entry in statuses %}{{ bar_row(entry, "loss") }}{% endfor %}{% else %}<p>{{ "Nothing was downloaded here: the tars were adopted as they are." if adopted else "All arrived." }}</p>{% endif %}</section>
{% if not adopted %}<section><h2>Hosts</h2>
{% if hosts %}<p>{{ hosts.said }}</p>
{% if hosts.lines %}<div class="legend">{% for color, label in hosts.legend %}<span><i style="background:{{ color }}"></i>{{ label }}</span>{% endfor %}</div>
<div class="scroll"><table class="hosts"><tr><th>host</th><th>rows</th><th>arrived</th><th>failed</th><th class="left" style="width:22%">what became of its rows</th><th class="left wide">most frequent failure</th></tr>
{% for line in hosts.lines %}<tr><td class="host">{% if line.host %}<bdi>{{ line.host }}</bdi>{% else %}<small>(no host)</small>{% endif %}</td><td data-label="rows">{{ line.rows | n }}</td><td data-label="arrived">{{ line.arrived }}</td><td data-label="failed">{{ line.failed | n }}</td>
<td class="left"><div class="track tall">{% for part in line.parts %}<div class="part" style="width:{{ part.width }}%;background:{{ part.color }}" title="{{ part.title }}"></div>{% endfor %}</div></td><td class="left wide">{{ line.reason }}</td></tr>
{% endfor %}</table></div>{% endif %}{% endif %}
{% for line in missing %}<p class="bad"{% if loop.first %} style="margin-top:14px"{% endif %}>{{ line }}</p>{% endfor %}</section>{% endif %}
{% if time_charts %}<section><h2>Over time</h2><p>{{ time_said }}</p><div class="charts">{% for c in time_charts %}{{ chart(c) }}{% endfor %}</div></section>{% endif %}
{% if histograms %}<section><h2>Pictures and captions</h2><p>{{ histograms_said }}</p><div class="charts">{% for c in histograms %}{{ chart(c) }}{% endfor %}</div></section>{% endif %}
<section><h2>Duplicates and evaluation data</h2><div class="charts">
{% for title, entries, otherwise in removed %}<div><h3>{{ title }}</h3>{% for entry in entries %}{{ bar_row(entry, "loss") }}{% else %}<p>{{ otherwise }}</p>{% endfor %}</div>{% endfor %}</div></section>
{% if sheet %}<section><h2>Some kept samples</h2><div class="sheet">
{% for entry in sheet %}<figure><img src="{{ entry.picture }}" alt=""><figcaption><bdi>{{ entry.caption }}</bdi><br><small>{{ entry.key }}, {{ entry.size }} px</small></figcaption></figure>
{% endfor %}</div></section>{% endif %}
</main></body></html>
"""
COLORS = ("#d9822b", "#7b5ea7", "#2a9d8f", "#b3261e", "#b58900")
OTHER_COLOR = "#a9b2bd"
STATUSES_SHOWN = 15
HOST_CHARS = 100


def _rows_in(funnel: dict) -> int:
    """What shares are of: rows, where all captions of a picture are one."""
    return funnel["rows_in"] - funnel["joined"]


def stages_of(funnel: dict) -> list[dict]:
    """The funnel's stages in order: name, count, and the losses on the way to the next one."""
    after_verify = dict(funnel["rejected"])
    broken = {"in damaged shards": funnel["in_damaged_shards"]} if funnel["in_damaged_shards"] else {}
    rows_in = _rows_in(funnel)
    rows = (
        ("rows in the catalogue" + ", those of a picture as one" * bool(funnel["joined"]), rows_in, funnel["dropped"]),
        ("requested", funnel["requested"], funnel["failed"]),
        ("downloaded", funnel["downloaded"], broken),
        ("verified", funnel["verified"], after_verify),
        ("kept", funnel["kept"], {}),
    )
    stages = []
    for name, count, losses in rows:
        lost_here = sum(losses.values())
        ordered = sorted(losses.items(), key=lambda item: (-item[1], item[0]))
        stages.append(
            {
                "name": name,
                "count": count,
                "share": percent(count, rows_in),
                "width": round(100 * count / max(1, rows_in), 2),
                "losses": [
                    {
                        "name": reason,
                        "count": lost,
                        "share": percent(lost, count),
                        "width": round(100 * lost / lost_here, 1),
                    }
                    for reason, lost in ordered
                ],
            }
        )
    return stages


def compare(columns: list[tuple[str, dict]]) -> dict:
    """Funnels side by side: titles and lines (stages, and under each its losses), a cell a column."""
    stages = [stages_of(funnel) for _, funnel in columns]
    lines = []
    for row in zip(*stages, strict=True):
        lines.append({"kind": "total", "name": row[0]["name"], "cells": list(row)})
        lost: Counter[str] = sum((Counter({loss["name"]: loss["count"] for loss in stage["losses"]}) for stage in row), Counter())
        for name, _ in lost.most_common():
            cells = []
            for stage in row:
                count = next((loss["count"] for loss in stage["losses"] if loss["name"] == name), 0)
                width = round(100 * count / max(1, stage["count"]), 2)
                cells.append({"count": count, "share": percent(count, stage["count"]), "width": width})
            lines.append({"kind": "lost", "name": name, "cells": cells})
    return {"titles": [title for title, _ in columns], "lines": lines}


def bars_of(counts: dict[str, int], whole: int, most: int = STATUSES_SHOWN) -> list[dict]:
    """Rows of a bar chart, most frequent first; beyond `most` they are one. Bars are relative to the longest."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rest = ordered[most:]
    shown = ordered[:most] + ([(f"{len(rest)} others", sum(count for _, count in rest))] if rest else [])
    longest = max((count for _, count in shown), default=1)
    return [
        {"name": name[:200], "count": count, "share": percent(count, whole), "width": round(100 * count / max(1, longest), 1)}
        for name, count in shown
    ]


def visible(host: str) -> str:
    """A stranger's name with what cannot be seen (controls, marks that turn the direction of writing) spelt out, and cut."""
    spelt = "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in host)
    return spelt[:HOST_CHARS] + ("..." if len(spelt) > HOST_CHARS else "")


def hosts_of(hosts: dict) -> dict:
    """The table of the worst hosts: a sentence, the legend of the bars, and lines."""
    groups: Counter[str] = Counter()
    for entry in hosts["worst"]:
        for message, count in entry["outcomes"].items():
            groups[group_of(message)] += count
    colors = dict(zip((name for name, _ in groups.most_common()), COLORS, strict=False))
    lines = []
    for entry in hosts["worst"]:
        parts = Counter({"arrived": entry["success"]})
        for message, count in entry["outcomes"].items():
            group = group_of(message)
            parts[group if group in colors else "other reasons"] += count
        order = ["arrived", *colors, "other reasons"]
        reason, count = next(iter(entry["outcomes"].items()))
        lines.append(
            {
                "host": visible(entry["host"]),
                "rows": entry["rows"],
                "arrived": percent(entry["success"], entry["rows"]),
                "failed": entry["rows"] - entry["success"],
                "reason": f"{reason[:60]} ({count:,})",
                "parts": [
                    {
                        "width": round(100 * parts[name] / entry["rows"], 2),
                        "color": {"arrived": "#2f6fde", **colors}.get(name, OTHER_COLOR),
                        "title": f"{name}: {parts[name]:,}",
                    }
                    for name in order
                    if parts[name]
                ],
            }
        )
    silent, distinct = hosts["silent"], hosts["distinct"]
    said = f"{distinct:,} host{'' if distinct == 1 else 's'}, by the catalogue's URLs. "
    if silent["rows"]:
        said += f"{silent['hosts']:,} of them, with {percent(silent['rows'], hosts['rows'])} of the rows, gave nothing at all. "
    said += "Those with the most failures:" if lines else "No row failed."
    others = [(OTHER_COLOR, "other reasons")] if len(groups) > len(colors) else []
    return {"said": said, "lines": lines, "legend": [("#2f6fde", "arrived"), *((c, name) for name, c in colors.items()), *others]}


def _projection(projection: dict | None, sources: dict[str, dict] | None = None) -> dict | None:
    if projection is None:
        return None
    tiles = [
        (number(projection["kept"]), f"samples kept (95 %: {number(projection['kept_low'])} to {number(projection['kept_high'])})"),
        (percent(projection["share"], 1), "of all rows"),
        (size_text(projection["bytes"]), "in tars"),
        (hours_text(projection["job_hours"]), "of downloading, for one job like the one here"),
    ]
    lines = []
    for name, source in (sources or {}).items():
        found = source["projection"]
        if found is None:
            lines.append(
                [f"{name} (as it is)", number(source["rows_in"]), number(source["kept"]), "-", size_text(source["bytes"]), "-"]
            )
        else:
            interval = f"{number(found['kept_low'])} to {number(found['kept_high'])}"
            facts = (
                number(found["to_rows"]),
                number(found["kept"]),
                interval,
                size_text(found["bytes"]),
                hours_text(found["job_hours"]),
            )
            lines.append([name, *facts])
    said = f"{projection['to_rows']:,} rows, if they went like those above."
    return {"said": said, "tiles": tiles, "sources": lines}


def _missing(funnel: dict) -> list[str]:
    """What the page cannot tell, and why."""
    found, sidecars = [], funnel.get("sidecars")
    if sidecars and sidecars["left_out"]:
        found.append(
            f"Not counted by host: {sidecars['left_out']:,} of {sidecars['shards']:,} shards. A shard whose tar is deleted "
            "is downloaded again, and its sidecar with it."
        )
        found += [f"{shard}: {reason}" for shard, reason in sidecars["reasons"].items()]
    if funnel.get("stats_missing"):
        found.append(f"Without a stats file: {funnel['stats_missing']:,} shards; times, hours and speed are those of the others.")
    if funnel.get("without_hosts"):
        found.append(f"Not counted by host: {', '.join(funnel['without_hosts'])}")
    return found


def _shared(name: str, funnel: dict) -> dict:
    """What the page of a folder and that of several have in common."""
    failed = {message: count for message, count in funnel["statuses"].items() if message != SUCCESS}
    tiles = [
        (f"{funnel['kept']:,}", "samples kept"),
        (percent(funnel["kept"], _rows_in(funnel)), "of all rows"),
        (f"{funnel['shards']:,}", "shards"),
        (size_text(funnel["bytes"]), "in tars"),
        (size_text(funnel["bytes"] / max(1, funnel["verified"])), "per sample in them"),
    ]
    if funnel["joined"]:
        tiles.append((f"{funnel['joined']:,}", "further captions of the same pictures, in their samples"))
    if funnel["hours"] and funnel["hours"]["job"]:
        tiles.append((hours_text(funnel["hours"]["job"]), "of downloading, all jobs together"))
    if funnel["rows_per_second"]:
        tiles.append((f"{funnel['rows_per_second']:,.1f}", "rows a second, of one download job"))
    return {
        **{"name": name, "funnel": funnel, "tiles": tiles, "stages": stages_of(funnel), "missing": _missing(funnel)},
        "statuses": bars_of(failed, funnel["requested"]),
        "hosts": hosts_of(funnel["hosts"]) if funnel["hosts"] else None,
        "removed": [
            (
                "Duplicates, of all rows",
                bars_of(funnel["duplicates"], _rows_in(funnel)),
                "None were found, in the catalogue or by `mark`.",
            ),
            (
                "In evaluation sets, of the verified samples",
                bars_of(funnel["decontaminated"], funnel["verified"]),
                "None marked: `mark --evaluation` found none, or was not run.",
            ),
        ],
    }


def _render(**values: object) -> str:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters["n"] = "{:,}".format
    return environment.from_string(PAGE).render(**values)


def render(name: str, funnel: dict, sheet: list[dict]) -> str:
    """The page of one folder as HTML. Everything from the catalogue is escaped."""
    shared, took, size = _shared(name, funnel), funnel["hours"], funnel["image_size"]
    side = funnel["short_side"]
    shared["tiles"].append((f"{side['median']:,.0f} px", f"median short side ({side['least']:,.0f} to {side['most']:,.0f})"))
    said = ""
    if took:
        begun = datetime.fromtimestamp(funnel["over_time"]["start"], timezone.utc)
        said = (
            f"From {begun:%Y-%m-%d %H:%M} UTC, {hours_text(took['wall'])} from the first shard's start to the last one's end. For "
        )
        said += f"{hours_text(took['job'])} at least one shard was in work (added up over part folders); all shards' times together are "
        said += f"{hours_text(took['process'])}. A shard's rows are spread evenly over its time."
    histograms = [
        histogram_chart("Captions", funnel["caption_chars"], "characters", "captions"),
        histogram_chart("Short side as stored", size["short_side"], "pixels", "pictures"),
        histogram_chart("Width : height as stored", size["aspect"], "width : height", "pictures", ratio=True),
    ]
    if size["original_short_side"]:
        histograms.append(histogram_chart("Short side before it was reduced", size["original_short_side"], "pixels", "pictures"))
    histograms_said = f"Of {size['pictures']:,} kept samples"
    if size["pictures"] < funnel["kept"]:
        histograms_said += f", those of evenly chosen shards, of {funnel['kept']:,}"
    histograms_said += "." if size["original_short_side"] else "; sizes before they were reduced are not known (no sidecars)."
    return _render(
        **shared,
        sheet=sheet,
        tables=[],
        adopted=funnel["sidecars"] is None,
        projection=_projection(funnel["projection"]),
        time_charts=time_charts(funnel["over_time"]) if funnel["over_time"] else [],
        time_said=said,
        histograms=sorted(histograms, key=lambda entry: entry["ticks"] is None),  # sentences last
        histograms_said=histograms_said,
    )


def render_total(total: dict) -> str:
    """The page of several folders together (report.report_total)."""
    sources, folders = total["per_source"], total["folders"]
    tables = []
    if len(sources) > 1:
        tables.append(("By source", compare([*sources.items(), ("total", total)])))
    if len(sources) < len(folders) or len(sources) == 1:
        named = [(f"{Path(funnel['folder']).name} ({funnel['source']})", funnel) for funnel in folders]
        tables.append(("By folder", compare([*named, ("total", total)])))
    return _render(
        **_shared(f"{len(folders)} folders together", total),
        sheet=[],
        tables=tables,
        adopted=set(sources) == {"wds"},
        projection=_projection(total["projection"], sources),
        time_charts=[],
        time_said="",
        histograms=[],
        histograms_said="",
    )

"""The funnel as one self-contained page: no script, no file beside it."""

# ruff: noqa: E501  (lines of HTML and CSS)

from __future__ import annotations

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Funnel of {{ name }}</title>
<style>
:root { --ink: #1c2430; --soft: #66717f; --line: #e3e7ec; --keep: #2f6fde; --lost: #d9822b; --paper: #fff; --wash: #f5f7fa; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--wash); color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 24px 48px; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 17px; margin: 0 0 12px; }
p { margin: 0 0 8px; color: var(--soft); }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 20px 22px; margin-top: 18px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 14px; margin-top: 18px; }
.tile { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px; }
.tile b { display: block; font-size: 24px; font-variant-numeric: tabular-nums; } .tile span { color: var(--soft); font-size: 13px; }
.row { display: grid; grid-template-columns: 230px 1fr 150px; gap: 14px; align-items: center; padding: 3px 0; }
.row .n { text-align: right; font-variant-numeric: tabular-nums; } .row .n small { color: var(--soft); display: inline-block; min-width: 58px; }
.track { background: var(--wash); border-radius: 4px; height: 18px; overflow: hidden; }
.bar { height: 100%; background: var(--keep); border-radius: 4px; min-width: 2px; }
.stage { font-weight: 600; padding-top: 8px; } .stage .track { height: 26px; }
.loss { font-size: 14px; } .loss .name { padding-left: 18px; color: var(--soft); } .loss .track { height: 10px; } .loss .bar { background: var(--lost); }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)); gap: 16px; }
figure { margin: 0; } figure img { width: 100%; height: 180px; object-fit: contain; background: var(--wash); border-radius: 6px; image-rendering: auto; }
figcaption { font-size: 13px; margin-top: 6px; overflow-wrap: anywhere; } figcaption small { color: var(--soft); }
svg text { font: 11px system-ui, sans-serif; fill: var(--soft); }
code { font-size: 13px; } .bad { color: #b3261e; }
@media (max-width: 700px) { .row { grid-template-columns: 1fr; } .row .n { text-align: left; } }
</style></head><body><main>
<h1>{{ name }}</h1>
<p>From catalogue rows to samples that may be trained on. Source: {{ funnel.source }}. Blue is what goes on, orange is what was left behind and why.</p>
<div class="tiles">
{% for value, label in tiles %}<div class="tile"><b>{{ value }}</b><span>{{ label }}</span></div>
{% endfor %}</div>
<section><h2>The funnel</h2>
{% for stage in stages %}
<div class="row stage"><div>{{ stage.name }}</div><div class="track"><div class="bar" style="width:{{ stage.width }}%"></div></div>
<div class="n">{{ "{:,}".format(stage.count) }} <small>{{ stage.share }}</small></div></div>
{% for loss in stage.losses %}<div class="row loss"><div class="name">{{ loss.name }}</div><div class="track"><div class="bar" style="width:{{ loss.width }}%"></div></div>
<div class="n">{{ "{:,}".format(loss.count) }} <small>{{ loss.share }}</small></div></div>
{% endfor %}{% endfor %}
<p style="margin-top:12px">Shares of stages are of all rows, shares of losses of the rows of their stage. The orange bars of a stage
together make its whole loss.</p>
</section>
{% if funnel.damaged_shards %}<section><h2 class="bad">Damaged shards, left out</h2>
{% for entry in funnel.damaged_shards %}<p><code>{{ entry.path }}</code> {{ entry.reason }}</p>{% endfor %}</section>{% endif %}
<section><h2>Captions</h2><p>Characters per kept caption; half of them have {{ funnel.caption_chars.median | round | int }} or more.</p>
<svg viewBox="0 0 960 150" width="100%" role="img" aria-label="Histogram of caption lengths">
{% for bin in bins %}<rect x="{{ bin.x }}" y="{{ 120 - bin.h }}" width="{{ bin.w }}" height="{{ bin.h }}" rx="2" fill="#2f6fde"><title>{{ bin.title }}</title></rect>
{% endfor %}<line x1="0" x2="960" y1="120" y2="120" stroke="#e3e7ec"/>
<text x="0" y="138">{{ funnel.caption_chars.edges[0] | round | int }}</text><text x="960" y="138" text-anchor="end">{{ funnel.caption_chars.edges[-1] | round | int }} characters</text></svg>
</section>
<section><h2>Some kept samples</h2><div class="sheet">
{% for entry in sheet %}<figure><img src="{{ entry.picture }}" alt=""><figcaption>{{ entry.caption }}<br><small>{{ entry.key }}, {{ entry.size }} px</small></figcaption></figure>
{% endfor %}</div></section>
</main></body></html>
"""


def percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def stages_of(funnel: dict) -> list[dict]:
    """The funnel's stages in order: name, count, and the losses on the way to the next one."""
    after_verify = dict(funnel["rejected"])
    broken = {"in damaged shards": funnel["in_damaged_shards"]} if funnel["in_damaged_shards"] else {}
    rows = (
        ("rows in the catalogue", funnel["rows_in"], funnel["dropped"]),
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
                "share": percent(count, funnel["rows_in"]),
                "width": round(100 * count / max(1, funnel["rows_in"]), 2),
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


def render(name: str, funnel: dict, sheet: list[dict]) -> str:
    """The page as HTML. Everything from the catalogue is escaped."""
    from jinja2 import Environment, StrictUndefined

    counts, edges = funnel["caption_chars"]["counts"], funnel["caption_chars"]["edges"]
    width = 960 / len(counts)
    bins = [
        {
            "x": round(index * width + 1, 1),
            "w": round(width - 2, 1),
            "h": round(110 * count / max(1, *counts), 1),
            "title": f"{edges[index]:.0f} to {edges[index + 1]:.0f}: {count}",
        }
        for index, count in enumerate(counts)
    ]
    side = funnel["short_side"]
    tiles = [
        (f"{funnel['kept']:,}", "samples kept"),
        (percent(funnel["kept"], funnel["rows_in"]), "of all rows"),
        (f"{funnel['shards']:,}", "shards"),
        (f"{funnel['bytes'] / 2**20:,.1f} MiB", "in tars"),
        (f"{funnel['bytes'] / max(1, funnel['kept']) / 1024:,.1f} KiB", "per sample"),
        (f"{side['median']:.0f} px", f"median short side ({side['least']} to {side['most']})"),
    ]
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(PAGE)
    return template.render(name=name, funnel=funnel, sheet=sheet, stages=stages_of(funnel), bins=bins, tiles=tiles)

"""What the viewer's page is made of besides trajectories: its style, its one script, and the empty page."""

from __future__ import annotations

CARD_STYLE = """
.mmsr{--ink:#1d2733;--muted:#5d6976;--line:#dfe5ea;--paper:#fff;--soft:#f5f7f9;--accent:#c4510c;--navy:#2b567f;
--violet:#6b5a8e;--good:#1f6f54;--bad:#a3203a;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;overflow-wrap:anywhere;
container-type:inline-size;border-radius:10px;padding:1.4rem 1.5rem;text-align:left}
@media(prefers-color-scheme:dark){.mmsr{--ink:#e4e9ee;--muted:#98a5b2;--line:#333d48;--paper:#1a2028;--soft:#222a33;
--accent:#f08a45;--navy:#7fb2e0;--violet:#b5a3db;--good:#5fc29c;--bad:#f0798c}}
.mmsr *{box-sizing:border-box}
.mmsr h2{font-size:1.25rem;line-height:1.35;margin:0 0 .5rem;font-weight:650;text-wrap:balance}
.mmsr p{margin:0}
.mmsr .facts{display:flex;flex-wrap:wrap;gap:.15rem 0;color:var(--muted);font-size:.83rem}
.mmsr .facts span:not(:last-child)::after{content:"·";margin:0 .5rem;opacity:.7}
.mmsr .verdict{display:grid;grid-template-columns:auto minmax(0,1fr);gap:0 .6rem;margin:.8rem 0 0;font-size:1.05rem;
font-weight:600}
.mmsr .verdict.right{color:var(--good)}.mmsr .verdict.wrong{color:var(--bad)}
.mmsr .verdict .gold{grid-column:2;color:var(--muted);font-weight:400;font-size:.9rem}
.mmsr .body{display:grid;gap:1.5rem;margin-top:1.2rem}
@container(min-width:640px){.mmsr .body{grid-template-columns:minmax(200px,17rem) minmax(0,1fr)}}
.mmsr .pictures{display:grid;gap:.9rem;align-content:start;grid-template-columns:1fr 1fr}
@container(min-width:640px){.mmsr .pictures{grid-template-columns:1fr}}
.mmsr figure{margin:0}
.mmsr .scene,.mmsr .crop{position:relative;background-image:var(--picture);background-size:100% 100%;
border-radius:4px;overflow:hidden;width:100%}
.mmsr .crop{border:2px solid var(--accent);background-origin:border-box}
.mmsr .scene i{position:absolute;display:block}
.mmsr .crop-box{border:2px solid #d8580c;box-shadow:0 0 0 1.5px #fff,inset 0 0 0 1.5px #fff;border-radius:2px}
.mmsr .gold-box{outline:1.5px dashed #111;box-shadow:0 0 0 1.5px #ffffffb0}
.mmsr figcaption,.mmsr .none{color:var(--muted);font-size:.8rem;margin-top:.35rem}
.mmsr .dashed::before{content:" · "}
.mmsr ol.turns{list-style:none;margin:0;padding:0;display:grid;align-content:start;gap:1.1rem;min-width:0}
.mmsr ol.turns>li{border-left:2px solid var(--line);padding-left:1rem;display:grid;align-content:start;gap:.55rem;
min-width:0}
.mmsr .turn{font-size:.75rem;color:var(--muted);letter-spacing:.03em;line-height:1}
.mmsr .turn small{margin-left:.6rem;opacity:.8;font-size:inherit}
.mmsr .block{display:grid;gap:0 .9rem;min-width:0}
@container(min-width:480px){.mmsr .block{grid-template-columns:7.2rem minmax(0,1fr)}}
.mmsr .tag{font-size:.8rem;font-weight:650;line-height:1.5rem}
.mmsr .block p{white-space:pre-wrap}
.mmsr .reason .tag,.mmsr .prompt .tag,.mmsr .reason p,.mmsr .prompt p{color:var(--muted)}
.mmsr .reason p{font-style:italic}
.mmsr .img_search .tag,.mmsr .img_search p{color:var(--accent)}
.mmsr .text_search .tag,.mmsr .text_search p{color:var(--navy)}
.mmsr .img_search p,.mmsr .text_search p,.mmsr .answer p{font-weight:600}
.mmsr .unread .tag,.mmsr .error .tag,.mmsr .error p{color:var(--bad)}
.mmsr .unread p,.mmsr .information p{font-size:.88rem;max-height:16rem;overflow:auto}
.mmsr .information .tag{color:var(--violet)}
.mmsr .information p{background:var(--soft);border-radius:6px;padding:.55rem .75rem}
.mmsr .prompt p{font-size:.83rem}
.mmsr details{font-size:.83rem;color:var(--muted)}
.mmsr summary{cursor:pointer}
.mmsr details ol{margin:.3rem 0 0;padding-left:1.6rem}
.mmsr .is-gold{color:var(--good);font-weight:600}
.mmsr a{color:inherit}
.mmsr code{font-size:.92em;opacity:.8}
@container(min-width:480px){.mmsr details{margin-left:8.1rem}}
"""

PAGE_STYLE = """
:root{color-scheme:light dark;--ground:#eef1f4;--ink:#1d2733;--muted:#5d6976;--line:#d5dce2;--paper:#fff;
--accent:#c4510c;--good:#1f6f54;--bad:#a3203a}
@media(prefers-color-scheme:dark){:root{--ground:#11161c;--ink:#e4e9ee;--muted:#98a5b2;--line:#333d48;--paper:#1a2028;
--accent:#f08a45;--good:#5fc29c;--bad:#f0798c}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
.page{max-width:1240px;margin:0 auto;padding:1rem;display:grid;gap:1rem}
nav,main{min-width:0}
h1{font-size:1.05rem;margin:0}
.count{margin:.15rem 0 .8rem;color:var(--muted);font-size:.85rem}
.filters{display:grid;grid-template-columns:repeat(3,minmax(0,1fr));gap:.6rem}
.filters label{font-size:.78rem;color:var(--muted);display:grid;gap:.15rem}
select,button{font:inherit;color:inherit;background:var(--paper);border:1px solid var(--line);border-radius:7px;
padding:.4rem .5rem;min-width:0;width:100%}
button{cursor:pointer}
:focus-visible{outline:2px solid var(--accent);outline-offset:1px}
.list{list-style:none;margin:.8rem 0 0;padding:0;max-height:9.5rem;overflow:auto;background:var(--paper);
border:1px solid var(--line);border-radius:10px}
.list button{border:0;border-radius:0;background:none;text-align:left;display:grid;grid-template-columns:1.1rem 1fr;
gap:0 .4rem;padding:.5rem .7rem;border-bottom:1px solid var(--line);line-height:1.35;font-size:.87rem}
.list b.right{color:var(--good)}.list b.wrong{color:var(--bad)}.list b.unscored{color:var(--muted)}
.list small{grid-column:2;color:var(--muted)}
.list [aria-current=true]{background:color-mix(in srgb,var(--accent) 12%,transparent);
box-shadow:inset 3px 0 var(--accent)}
.bar{display:flex;flex-wrap:wrap;gap:.5rem;margin-bottom:.7rem;align-items:center}
.bar .step{width:2.6rem;flex:none;padding:.35rem 0}
.others{display:flex;flex-wrap:wrap;gap:.4rem}
.others button{width:auto;padding:.3rem .65rem;font-size:.82rem}
.others [aria-current=true]{border-color:var(--accent);color:var(--accent);font-weight:650}
.stage .mmsr{border:1px solid var(--line)}
.stage>p{padding:3rem 1rem;text-align:center;color:var(--muted)}
@media(min-width:900px){.page{grid-template-columns:19rem minmax(0,1fr);padding:1.5rem}
nav{position:sticky;top:1.5rem;height:calc(100vh - 3rem);display:flex;flex-direction:column}
.filters{grid-template-columns:1fr}.list{max-height:none;flex:1}}
"""

# Reads the filters' facts from data attributes and writes them as text alone; cards are cloned as they were rendered.
SCRIPT = """
"use strict";
const byId = (id) => document.getElementById(id);
const all = [...document.querySelectorAll("template[data-title]")];
const filters = ["workflow", "type", "outcome"].map(byId);
const marks = {right: "✓", wrong: "✗", unscored: "·"};
let shown = [], at = null;

function make(parent, tag, text, name) {
  const element = document.createElement(tag);
  element.textContent = text;
  if (name) element.className = name;
  parent.append(element);
  return element;
}
function place() {  // of what is shown in the list, where it may stand under another workflow
  const exact = shown.indexOf(at);
  return exact >= 0 || !at ? exact : shown.findIndex((t) => t.dataset.question === at.dataset.question);
}
function bringIntoView(element, box) {
  const [inner, outer] = [element.getBoundingClientRect(), box.getBoundingClientRect()];
  if (inner.top < outer.top || inner.bottom > outer.bottom) box.scrollTop += inner.top - outer.top - 8;
}
function show(item) {
  at = item;
  byId("stage").replaceChildren(item ? item.content.cloneNode(true) : "");
  if (!item) make(byId("stage"), "p", "No trajectory matches these filters.");
  for (const button of byId("list").querySelectorAll("button")) {
    const current = button.item === shown[place()];
    button.setAttribute("aria-current", current);
    if (current) bringIntoView(button, byId("list"));
  }
  byId("others").replaceChildren();
  const same = item && item.dataset.question ? all.filter((t) => t.dataset.question === item.dataset.question) : [];
  for (const other of same.length > 1 ? same : []) {
    const button = make(byId("others"), "button", marks[other.dataset.outcome] + " " + other.dataset.short);
    button.setAttribute("aria-current", other === item);
    button.onclick = () => show(other);
  }
  if (item) history.replaceState(null, "", "#" + all.indexOf(item));
}
function narrow() {
  shown = all.filter((t) => filters.every((f) => !f.value || t.dataset[f.id] === f.value));
  const right = shown.filter((t) => t.dataset.outcome === "right").length;
  const scored = shown.filter((t) => t.dataset.outcome !== "unscored").length;
  byId("count").textContent = shown.length + " of " + all.length +
    (scored ? ", " + Math.round(100 * right / scored) + " % right" : "");
  byId("list").replaceChildren();
  for (const item of shown) {
    const button = make(make(byId("list"), "li", ""), "button", "");
    make(button, "b", marks[item.dataset.outcome], item.dataset.outcome);
    make(button, "span", item.dataset.title);
    const [workflow, type] = [filters[0].value ? "" : item.dataset.label, item.dataset.kind];
    make(button, "small", [workflow, type].filter(Boolean).join(" · "));
    button.item = item;
    button.onclick = () => show(item);
  }
  show(shown[Math.max(0, place())] || null);
}
function step(by) {
  if (!shown.length) return;
  show(shown[(place() + by + shown.length) % shown.length]);
}
document.addEventListener("keydown", (event) => {
  if (event.target.tagName === "SELECT" || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "ArrowRight") step(1);
  else if (event.key === "ArrowLeft") step(-1);
  else return;
  event.preventDefault();
});
for (const filter of filters) filter.onchange = narrow;
byId("back").onclick = () => step(-1);
byId("next").onclick = () => step(1);
at = all[parseInt(location.hash.slice(1), 10)] || null;
filters[0].value = at ? at.dataset.workflow : all.some((t) => t.dataset.workflow === "grpo") ? "grpo" : "";
narrow();
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; \
script-src 'sha256-{script_hash}'; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Trajectories</title>
<style>{style}</style>
</head>
<body>
<div class="page">
<nav aria-label="trajectories">
<h1>Trajectories</h1>
<p class="count" id="count" aria-live="polite"></p>
<div class="filters">
<label>Workflow<select id="workflow"><option value="">all</option>{workflows}</select></label>
<label>Type<select id="type"><option value="">all</option>{types}</select></label>
<label>Answer<select id="outcome"><option value="">all</option><option value="right">right</option>\
<option value="wrong">wrong</option></select></label>
</div>
<ol class="list" id="list"></ol>
</nav>
<main>
<div class="bar"><button class="step" id="back" aria-label="previous" title="previous (left arrow key)">←</button>\
<button class="step" id="next" aria-label="next" title="next (right arrow key)">→</button>\
<div class="others" id="others" aria-label="the same question"></div></div>
<div class="stage" id="stage"></div>
</main>
</div>
{cards}
<script>{script}</script>
</body>
</html>
"""

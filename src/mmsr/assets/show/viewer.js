// Reads the filters' facts from data attributes and writes them as text alone; cards are cloned as they were rendered.
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
  if (item && location.protocol !== "about:") history.replaceState(null, "", "#" + all.indexOf(item));
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

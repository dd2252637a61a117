// Reads what the filters need from data attributes and writes it as text alone; a card is parsed, as it was rendered, when
// it is shown, and the list holds only the part in sight. So thousands of episodes are as quick as ten.
"use strict";
const byId = (id) => document.getElementById(id);
const plain = (text) => text.normalize("NFD").replace(/\p{M}/gu, "").toLowerCase();
const all = [...document.querySelectorAll("[data-facts]")].map((card) => ({...JSON.parse(card.dataset.facts), card}));
const filters = ["workflow", "outcome", "type", "changed"].map(byId).filter(Boolean);
const marks = {right: "✓", wrong: "✗", unscored: "·"};
const list = byId("list"), stage = byId("stage"), part = 100;
let shown = [], at = null, from = 0, to = 0;  // what passes the filters, the chosen one, the list's part

const played = (episodes, workflow) => episodes.find((t) => t.workflow === workflow);
for (const same of Map.groupBy(all, (t) => t.question || t).values()) {
  const [sft, grpo] = [played(same, "sft"), played(same, "grpo")];
  const changed = sft && grpo ? `SFT ${sft.outcome} → GRPO ${grpo.outcome}` : "";  // as the filter's options read
  for (const item of same) Object.assign(item, {same, changed, words: plain(item.title + " " + item.answer)});
}

function make(parent, tag, text, name) {
  const element = document.createElement(tag);
  element.textContent = text;
  if (name) element.className = name;
  parent.append(element);
  return element;
}
function place() {  // of what is shown in the list, where it may stand under another workflow
  const exact = shown.indexOf(at);
  return exact >= 0 || !at ? exact : shown.findIndex((t) => t.same === at.same);
}
function line(item) {
  const row = document.createElement("li"), button = make(row, "button", "");
  make(button, "b", marks[item.outcome], item.outcome);
  make(button, "span", item.title);
  make(button, "small", [byId("workflow").value ? "" : item.label, item.kind].filter(Boolean).join(" · "));
  button.item = item;
  button.onclick = () => show(item);
  return row;
}
function lengthen() {  // the list, where it is scrolled near an end
  if (list.scrollTop + list.clientHeight > list.scrollHeight - 400) list.append(...shown.slice(to, to += part).map(line));
  if (list.scrollTop > 400 || !from) return;
  const [height, end] = [list.scrollHeight, from];
  list.prepend(...shown.slice(from = Math.max(0, from - part), end).map(line));
  list.scrollTop += list.scrollHeight - height;
}
function mark(item) {  // the chosen one in the list
  const focused = list.contains(document.activeElement), now = place();
  if (now < from || now >= to) {
    from = Math.max(0, now - 20);
    list.replaceChildren(...shown.slice(from, to = from + part).map(line));
  }
  for (const button of list.querySelectorAll("button")) {
    const current = button.item === shown[now];
    button.ariaCurrent = current;
    button.tabIndex = current ? 0 : -1;
    if (!current) continue;
    const [inner, outer] = [button.getBoundingClientRect(), list.getBoundingClientRect()];
    if (inner.top < outer.top || inner.bottom > outer.bottom) list.scrollTop += inner.top - outer.top - 8;
    if (focused) button.focus({preventScroll: true});
  }
}
function pair(item) {  // the chosen episode on the right, SFT's or another on the left
  const left = played(item.same, "sft") || item.same.find((t) => t !== item);
  return [left, left !== item ? item : played(item.same, "grpo") || item.same.find((t) => t !== item)];
}
function card(item) {
  const article = new DOMParser().parseFromString(item.card.textContent, "text/html").body.firstElementChild;
  article.style.setProperty("--picture", `url(${byId(article.dataset.picture).textContent})`);
  return article;
}
function show(item) {
  at = item;
  const same = item && item.same.length > 1 ? item.same : [];
  const cards = same.length && byId("pair").ariaPressed === "true" ? pair(item) : item ? [item] : [];
  stage.replaceChildren(...cards.map(card));
  stage.classList.toggle("pair", cards.length > 1);
  if (!item) make(stage, "p", "No trajectory matches.");
  mark(item);
  byId("pair").hidden = !same.length;
  byId("others").replaceChildren();
  for (const other of same) {
    const button = make(byId("others"), "button", marks[other.outcome] + " " + other.short);
    button.ariaCurrent = cards.includes(other);
    button.onclick = () => show(other);
  }
  if (item && location.protocol !== "about:") history.replaceState(null, "", "#" + all.indexOf(item));
}
function narrow() {
  const typed = plain(byId("search").value).split(/\s+/);
  shown = all.filter((t) => filters.every((f) => !f.value || t[f.id] === f.value) &&
    typed.every((word) => t.words.includes(word)));
  const right = shown.filter((t) => t.outcome === "right").length;
  const scored = shown.filter((t) => t.outcome !== "unscored").length;
  byId("count").textContent = shown.length + " of " + all.length +
    (scored ? ", " + Math.round(100 * right / scored) + " % right" : "");
  from = to = 0;
  list.replaceChildren();
  show(shown[Math.max(0, place())] || null);
}
function step(by) {
  if (shown.length) show(shown[(place() + by + shown.length) % shown.length]);
}
const keys = {ArrowRight: () => step(1), ArrowLeft: () => step(-1), b: () => byId("pair").click(), "/": () => byId("search").focus()};
const listed = {ArrowDown: keys.ArrowRight, ArrowUp: keys.ArrowLeft};
document.addEventListener("keydown", (event) => {
  if (["SELECT", "INPUT"].includes(event.target.tagName) || event.ctrlKey || event.metaKey || event.altKey) return;
  const act = keys[event.key] || (list.contains(event.target) && listed[event.key]);
  if (!act) return;
  act();
  event.preventDefault();
});
for (const filter of filters) filter.onchange = narrow;
byId("search").oninput = narrow;
byId("back").onclick = keys.ArrowLeft;
byId("next").onclick = keys.ArrowRight;
byId("pair").onclick = () => {
  byId("pair").ariaPressed = byId("pair").ariaPressed !== "true";
  show(at);
};
list.onscroll = lengthen;
at = all[parseInt(location.hash.slice(1), 10)] || null;
byId("workflow").value = at ? at.workflow : all.some((t) => t.workflow === "grpo") ? "grpo" : "";
narrow();

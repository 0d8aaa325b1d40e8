"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const get = (id) => document.getElementById(id);
const task = get("task"), kind = get("kind"), search = get("search");

function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children.filter((child) => child !== null));
  return element;
}

/* The base model to compare with. */
get("pair").addEventListener("change", (event) => {
  for (const part of document.querySelectorAll(".pair")) part.hidden = part.dataset.pair !== event.target.value;
});

/* Rows of the table that unfold. */
for (const button of document.querySelectorAll(".unfold")) {
  button.addEventListener("click", () => {
    const more = get(button.getAttribute("aria-controls"));
    more.hidden = !more.hidden;
    button.setAttribute("aria-expanded", String(!more.hidden));
  });
}
for (const button of document.querySelectorAll(".browse")) {
  button.addEventListener("click", () => {
    task.value = String(data.tasks.findIndex((item) => item.task === button.dataset.task));
    kind.value = "";
    search.value = "";
    choose();
    get("failures").scrollIntoView();
  });
}

/* Failures, one at a time. */
data.tasks.forEach((item, index) => {
  const name = item.row === item.task ? item.row : `${item.row} · ${item.task}`;
  task.append(make("option", { value: index }, `${name} (${item.answers})`));
});
for (const [name, words] of Object.entries(data.kinds)) {
  const count = data.tasks.reduce((sum, item) => sum + (item.counts[name] || 0), 0);
  if (count) kind.append(make("option", { value: name }, `${words} (${count})`));
}
function searched(item) {
  item.words ??= JSON.stringify([item.id, item.prompt, item.response, item.judge, item.expected, item.fields, Object.values(item.facts)])
    .replaceAll("\\n", " ").replaceAll('\\"', '"').replaceAll("\\\\", "\\").toLowerCase();
  return item.words;
}
let found = [], at = 0;
function choose() {
  const words = search.value.trim().toLowerCase();
  found = data.items.filter((item) =>
    (task.value === "" || item.task === Number(task.value)) &&
    (kind.value === "" || item.kinds.includes(kind.value)) &&
    (words === "" || searched(item).includes(words)));
  at = 0;
  show();
}
function turn(step) {
  if (!found.length) return;
  at = (at + step + found.length) % found.length;
  show();
}
function list(pairs) {
  const element = make("dl");
  for (const [name, value] of pairs) element.append(make("dt", {}, name), make("dd", { class: "text" }, value));
  return element;
}
function text(title, content, kind = "") {
  if (content === null || content === undefined) return null;
  return make("section", {}, make("h4", {}, title), make("div", { class: `text ${kind}` }, content || make("span", { class: "muted" }, "empty")));
}
function fold(title, content) {
  return make("details", {}, make("summary", {}, title), content);
}
function picture(name, index) {
  const image = make("img", { src: data.pictures[name] || name, alt: `picture ${index + 1} of the question`, loading: "lazy" });
  const figure = make("figure", {}, make("a", { href: name }, image), make("figcaption", {}, make("a", { href: name }, name)));
  image.addEventListener("error", () => image.replaceWith(make("span", { class: "broken" }, "the picture is not beside this page")));
  return figure;
}
function show() {
  const item = found[at], box = get("item");
  get("previous").disabled = get("next").disabled = found.length < 2;
  get("place").textContent = found.length ? `${at + 1} of ${found.length}` : "none";
  get("kept").textContent = "";
  if (!item) {
    box.replaceChildren(make("p", { class: "muted" }, data.items.length ? "No answer in this page is like that." : "There is nothing to look at: no answer failed."));
    return;
  }
  const owner = data.tasks[item.task];
  if (owner.kept < owner.answers) {
    get("kept").textContent = `${owner.kept} of ${owner.answers.toLocaleString("en")} of ${owner.row} are in this page; all are in questions/${owner.task}.jsonl.`;
  }
  const tags = make("div", { class: "tags" }, make("span", { class: "tag domain" }, owner.row), make("span", { class: "tag" }, item.id));
  if (item.sample) tags.append(make("span", { class: "tag" }, `sample ${item.sample + 1}`));
  for (const name of item.kinds) tags.append(make("span", { class: `tag kind ${name}` }, data.kinds[name]));
  const pictures = make("div", { class: "images" }, ...item.images.map(picture));
  const judged = item.judge.map(([prompt, reply], index) => make("div", {},
    text(item.judge.length > 1 ? `judge's reply ${index + 1}` : "judge's reply", reply ?? "(no reply)", "answer"),
    fold("what the judge was asked", make("div", { class: "text answer" }, prompt ?? ""))));
  const expected = item.expected.length ? make("section", { class: "expected" }, make("h4", {}, "expected"), list(item.expected)) : null;
  const facts = make("section", {}, make("h4", {}, "answer"), list(Object.entries(item.facts)));
  const asked = make("div", { class: "question" }, pictures, text("question", item.prompt), expected, facts,
    item.fields.length ? fold("other fields of the row", list(item.fields)) : null);
  const answered = make("div", { class: "answered" }, text("response", item.response, "answer"), ...judged);
  box.replaceChildren(tags, make("div", { class: "columns" }, asked, answered));
}
task.addEventListener("change", choose);
kind.addEventListener("change", choose);
search.addEventListener("input", choose);
get("previous").addEventListener("click", () => turn(-1));
get("next").addEventListener("click", () => turn(1));
document.addEventListener("keydown", (event) => {
  if (event.target.closest?.("input, select, textarea") || event.altKey || event.ctrlKey || event.metaKey) return;
  if (event.key === "ArrowLeft") turn(-1);
  if (event.key === "ArrowRight") turn(1);
});
choose();

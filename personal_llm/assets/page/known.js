// what is known, and learning
import { $, attempt, count, make, makeButton, onSubmit, show, sync } from "./dom.js";
import { get, post } from "./server.js";
import { change, makeScope, openEditor, page } from "./turns.js";

const formatDate = (time) => (time > 1e8 ? new Date(time * 1000).toLocaleDateString() : "");
const text = (content) => make("p", { textContent: content, dir: "auto" });
const place = (name, body, scope) => makeScope(scope, (event) => change(name, { ...body, scope: event.target.value }));

function makeKnown(row, ...children) {
  const name = row.prompt.slice(0, 80);
  const source = make("span", { className: "soft", textContent: [row.source, formatDate(row.time)].filter(Boolean).join(", ") });
  const item = make("li", {}, ...children);
  const actions = item.appendChild(make("p", { className: "row" }, source));
  if (row.reply) actions.append(makeButton("✎", `Correct: ${name}`, () => openEditor(item, row)));
  actions.append(makeButton("Forget", `Forget: ${name}`, () => page.forgetAll({ ids: [row.id] }), "small danger"));
  return item;
}

function makeAnswer(row) {
  const kind = row.origin === "annotated" ? "You would say:" : "You liked:";
  const parts = [text(row.prompt), make("p", { className: "soft", textContent: kind }), text(row.reply)];
  if (row.origin === "annotated") parts.push(place("scope", { id: row.id }, row.scope));
  return makeKnown(row, ...parts);
}

function makeInstruction({ number, text: content, time }) {
  const field = make("input", { defaultValue: content, ariaLabel: "A standing instruction", required: true });
  const drop = makeButton("✕", `Delete: ${content}`, () => change("react", { kind: "always", number }), "small danger");
  const date = make("span", { className: "soft", textContent: formatDate(time) });
  const form = make("form", { className: "row" }, field, make("button", { textContent: "Change" }), date, drop);
  onSubmit(form, () => {
    field.defaultValue = field.value; // it is sent: nothing is typed here any more
    field.blur();
    return change("react", { kind: "always", number, text: field.value });
  });
  return make("li", {}, form);
}

export async function loadKnown() {
  const { instructions, habits, answers, statements } = await get("known");
  const fill = (id, rows, key, build) => {
    sync($(id), rows.length ? rows : [null], (row) => (row ? row[key] : ""), (row) => (row ? build(row) : make("li", { textContent: "Nothing yet." })));
  };
  fill("instructions", instructions, "number", makeInstruction);
  fill("habits", habits, "label", (row) => make("li", {}, text(row.text), place("habit", { text: row.label }, row.scope)));
  fill("answers", answers, "id", makeAnswer);
  fill("statements", statements, "id", (row) => makeKnown({ ...row, reply: "" }, text(row.prompt)));
}

export const learning = { since: 0 }; // milliseconds, on the clock of this page
export async function loadStatus() {
  const status = await get("status");
  learning.since = status.is_learning ? learning.since || Date.now() : 0;
  const minutes = (Date.now() - learning.since) / 60000;
  const left = Math.max(1, Math.round(status.seconds / 60 - minutes));
  const time = status.seconds ? `about ${count(left, "minute")} left` : `for ${count(Math.round(minutes), "minute")} so far`;
  const idle = `Answers of yours that are not learned yet: ${status.unlearned}.`;
  $("learning").textContent = status.is_learning ? `Learning, ${time}. You can go on chatting.` : idle;
  $("model").textContent = status.model.split("/").pop() + (status.is_learning ? ` · learning, ${time}` : "");
  $("small").textContent = status.note;
  $("progress").hidden = $("stop").hidden = !status.is_learning;
  $("learn").disabled = status.is_learning || !status.unlearned;
  $("undo").hidden = status.is_learning || !status.finetunes;
  if (status.seconds) $("progress").value = Math.min(0.99, minutes * 60 / status.seconds);
  else $("progress").removeAttribute("value");
  if (status.messages.length) show(status.messages.join(" "));
}

for (const name of ["learn", "stop", "undo"]) {
  $(name).onclick = () => attempt(async () => {
    show((await post(name)).message || "");
    await loadStatus();
  });
}

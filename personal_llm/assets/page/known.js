// what is known, and learning
import { $, attempt, count, makeLine, makeSentence, show, stamp, sync } from "./dom.js";
import { get, post } from "./server.js";
import { change, makePlaces, openEditor, page } from "./turns.js";

function makeKnown(row, edit, drop, scoped = null) { // scoped: [the change of a place, its fields]
  const date = row.time > 1e8 ? new Date(row.time * 1000).toLocaleDateString() : "";
  const kind = row.reply && (row.origin === "annotated" ? "Your text" : "You liked");
  const source = [row.source, date].filter(Boolean).join(", ");
  const text = row.prompt || row.text;
  const places = scoped && makePlaces(row.scope, ...scoped);
  const texts = { text, kind, "reply-text": row.reply, places, source };
  const item = stamp("known-item", texts, { edit: edit && (() => edit(item)), drop }, text.slice(0, 80));
  return item;
}

const forget = (row) => () => page.forget({ ids: [row.id] });

function makeAnswer(row) {
  const scoped = row.origin === "annotated" || row.scope ? ["scope", { id: row.id }] : null;
  return makeKnown(row, (item) => openEditor(item, row), forget(row), scoped);
}

function makeInstruction(row) {
  const instruct = (text) => change("react", { kind: "always", number: row.number, text });
  const edit = async () => {
    const text = prompt("Instruction for all replies", row.text);
    if (text?.trim()) await instruct(text);
  };
  const item = makeKnown(row, edit, () => instruct(""));
  const about = `End: ${row.text}`; // its words stay stored
  Object.assign(item.querySelector("[name=drop]"), { textContent: "End", ariaLabel: about, title: about });
  return item;
}

export async function loadKnown() {
  const known = await get("known");
  const fill = (name, key, build) => {
    const rows = known[name];
    const nothing = () => makeLine("Nothing yet.");
    sync($(name), rows.length ? rows : [{ [key]: "" }], key, rows.length ? build : nothing);
  };
  fill("instructions", "number", makeInstruction);
  fill("habits", "label", (row) => makeKnown(row, null, null, ["habit", { text: row.label }]));
  fill("answers", "id", makeAnswer);
  fill("statements", "id", (row) => makeKnown(row, null, forget(row)));
}

const nameTime = (seconds) => (seconds < 90 ? count(Math.ceil(seconds), "second") : count(Math.round(seconds / 60), "minute"));

function showSteps({ stored, corrected }) { // of a first visit
  const step = corrected ? 3 : Number($("steps").dataset.step);
  for (const [place, item] of [...$("steps").children].entries()) item.ariaCurrent = place + 1 === step ? "step" : null;
  $("steps").hidden = stored > 4 || corrected > 1 || document.querySelector("#turns .uses") !== null;
}

export async function loadStatus() {
  const status = await get("status");
  const isLearning = status.is_learning;
  const time = status.seconds ? ` It took ${nameTime(status.seconds)} the last time.` : "";
  const idle = status.unlearned ? `${count(status.unlearned, "correction")} not trained in yet.` : "Nothing new to train in.";
  $("learning").textContent = isLearning ? `Learning. You can go on chatting.${time}` : idle;
  $("model").textContent = status.model.split("/").pop() + (isLearning ? " · learning" : "");
  $("small").textContent = status.note && `· ${status.note}`;
  $("progress").hidden = $("stop").hidden = !isLearning;
  $("learn").disabled = isLearning || !status.unlearned;
  $("undo").hidden = isLearning || !status.finetunes;
  $("take-back").textContent = `Undo: ${status.undo}`;
  $("take-back").value = status.way;
  $("take-back").dataset.act = status.act;
  $("take-back").hidden = !status.undo;
  $("recall").textContent = status.undo ? "Undo …" : "Last note";
  $("recall").hidden = !status.undo && !$("said").textContent;
  showSteps(status);
  const cost = status.way === "undo" ? `It took ${nameTime(status.seconds)} of computing.` : "";
  if (status.messages.length) show([...status.messages.map(makeSentence), cost].filter(Boolean).join(" "));
}

for (const name of ["learn", "stop", "undo"]) {
  $(name).onclick = () => attempt(async () => {
    show((await post(name)).message || "");
    await loadStatus();
  });
}

// the turns of a talk
import { attempt, make, onSubmit, show, stamp } from "./dom.js";
import { makeMarkdown } from "./markdown.js";
import { post } from "./server.js";

export const page = {}; // what chat.js does for the turns and the lists: loadTalk, openTalk, send, refresh, forget
const drafts = new Map(); // id of a field -> what is typed in it: it outlives its element
let scopes = {}; // name of a scope -> its label

export const fillScopes = (labels) => { scopes = labels; };

export async function change(name, body) {
  show((await post(name, body)).message);
  await page.refresh();
}

function openForm(item, kind, texts, turn, start, action) { // action: of a text; false: the form stays
  item.querySelector("form")?.remove();
  const id = `${kind}-${turn.id}`;
  const close = () => {
    drafts.delete(id);
    form.remove();
    item.querySelector("[name=better], [name=edit], [name=more]").focus();
  };
  const form = stamp("editor", texts, { cancel: close });
  const field = form.querySelector("textarea");
  const oninput = () => drafts.set(id, field.value);
  Object.assign(field, { id, oninput, value: drafts.get(id) || start });
  onSubmit(form, async () => {
    if (await action(field.value, form) === false) return;
    close();
    await page.refresh();
  });
  item.append(form);
  field.select();
  form.scrollIntoView({ block: "center" });
}

export function openEditor(item, turn) {
  const texts = { what: "The reply you wanted", save: "Save the correction" };
  openForm(item, "better", texts, turn, turn.reply, async (text) => {
    const { kind, message } = await post("react", { id: turn.id, kind: "better", text });
    show(kind === "up" ? "Not changed: you liked this reply." : message);
  });
}

const openMessage = (item, turn) => {
  const texts = { what: "Your message; all that follows it leaves the talk", save: "Send this" };
  openForm(item, "message", texts, turn, turn.prompt, (text) => text.trim() !== "" && page.send(text.trim(), turn));
};

export function makePlaces(scope, name, fields) { // the choice where corrections apply, for a change with a name
  const makeOption = ([value, textContent]) => make("option", { value, textContent, selected: value === scope });
  const places = make("select", { name: "scope" }, ...Object.entries(scopes).map(makeOption));
  let isPassing = false; // an arrow key passes over a choice, which is saved by Enter or when the focus leaves
  const save = () => {
    if (places.value === scope) return false;
    scope = places.value;
    return attempt(() => change(name, { ...fields, scope }));
  };
  places.onkeydown = (event) => {
    isPassing = true;
    setTimeout(() => { isPassing = false; });
    if (event.key === "Enter" && save()) event.preventDefault(); // else it opens the list
  };
  places.onchange = () => isPassing || save();
  places.onblur = save;
  return places;
}

const MARKS = { up: "You liked this reply", down: "You did not like this reply", not_here: "You said: not here", here_too: "You said: here, too" };

function describeUse({ is_corrected, read, said }, reasons) { // what a reply used, and why; reasons: known until the page is loaded anew
  const of = read.map((prompt) => `“${prompt}”`).join(", ");
  const why = reasons.join("; ") || (of && `the nearest are of ${of}`);
  const uses = is_corrected ? "Uses your corrections" : reasons.length > 0 && "Doesn't use your corrections";
  const parts = [uses && [uses, why].filter(Boolean).join(" – "), said.length > 0 && `Uses what you said: ${said.join(" ")}`];
  return parts.filter(Boolean).join(". ");
}

async function judge(turn, kind, isLast) { // a correction of the gate, after which the newest reply is written anew
  await change("react", { id: turn.id, kind });
  if (isLast) await page.send(turn.prompt, turn);
}

export function makeTurn({ turn, question, isLast, reasons }) {
  const id = turn.id;
  const again = () => page.send(turn.prompt, turn, Boolean(turn.reply));
  const lost = turn.is_writing ? "Reading the chat …" : turn.is_cut ? "The reply was cut off before its end." : "This reply was forgotten.";
  const react = (kind) => () => change("react", { id, kind });
  const own = {
    message: () => openMessage(item, turn),
    drop: () => page.forget({ ids: [id] }),
  };
  const better = () => openEditor(item, turn);
  const ofReply = { up: react("up"), down: react("down"), better, again: isLast && again };
  const board = navigator.clipboard; // none in a page from another computer
  ofReply.copy = board && (() => board.writeText(turn.reply).then(() => show("Reply copied.")));
  const length = turn.length && `Your correction is ${turn.length}.`;
  const reply = makeMarkdown(turn.reply || lost);
  const [kind, places] = turn.is_own ? ["Your text", makePlaces(turn.scope, "scope", { id })] : [];
  const uses = turn.is_own ? "" : describeUse(turn, reasons);
  const texts = { own: turn.prompt, kind, answered: reply, uses, length, question, places, mark: MARKS[turn.reaction] };
  if (uses && turn.is_corrected) ofReply.not_here = () => judge(turn, "not_here", isLast);
  else if (uses && reasons.length && !turn.is_silent) ofReply.here_too = () => judge(turn, "here_too", isLast);
  const item = stamp("turn-item", texts, { ...own, ...(turn.reply ? ofReply : { [turn.is_cut ? "resume" : "answer"]: again }) });
  if (isLast) item.querySelector("[name=better], [name=resume]")?.classList.add("primary");
  if (drafts.has(`better-${id}`)) openEditor(item, turn);
  return item;
}

export function makeHabitQuestion({ label, question }) {
  const answer = (scope) => () => attempt(() => change("habit", { text: label, scope }));
  const makeButton = ([scope, textContent]) => make("button", { type: "button", textContent, onclick: answer(scope) });
  const buttons = make("div", { className: "row" }, ...Object.entries(scopes).map(makeButton));
  return make("li", {}, make("p", { className: "question", textContent: question }), buttons);
}

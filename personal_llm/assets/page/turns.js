// the turns of a talk
import { attempt, count, make, makeButton, makeFold, onSubmit, show } from "./dom.js";
import { makeMarkdown } from "./markdown.js";
import { copy, post } from "./server.js";

export const page = {}; // what page.js does for the turns: send, refresh, forgetAll

const drafts = new Map(); // id of a field -> what is typed in it: it outlives its element

const SCOPES = { "": "Where it belongs: what I leave alone decides", everywhere: "Everywhere", here: "Only for things like this" };

export function makeScope(scope, onchange) {
  const options = Object.entries(SCOPES).map(([value, textContent]) => make("option", { value, textContent, selected: value === scope }));
  return make("select", { ariaLabel: "Where it belongs", onchange }, ...options);
}

export const change = (name, body, note = "Noted.") => attempt(async () => {
  await post(name, body);
  show(note);
  await page.refresh();
});

function openForm(item, turn, kind, title, ...buttons) {
  item.querySelector("form.editor")?.remove();
  const field = make("textarea", { id: `${kind}-${turn.id}`, rows: 3 });
  const form = make("form", { className: "editor" }, make("label", { htmlFor: field.id, textContent: title }), field);
  const close = () => { drafts.delete(field.id); form.remove(); };
  const cancel = makeButton("Cancel", "Cancel", close, "");
  field.value = drafts.get(field.id) || "";
  field.oninput = () => drafts.set(field.id, field.value);
  form.append(make("p", { className: "row" }, ...buttons, cancel));
  item.append(form);
  if (item.isConnected) {
    field.focus();
    form.scrollIntoView({ block: "center" });
  }
  return [close, field, form];
}

export function openEditor(item, turn) {
  const scope = makeScope(turn.scope || "");
  const save = make("button", { className: "primary", textContent: "Say it like this" });
  const fill = makeButton("Edit the reply", "Edit the reply", () => { field.value = turn.reply; field.focus(); }, "");
  const [close, field, form] = openForm(item, turn, "better", "The reply that you wanted", scope, save, fill);
  onSubmit(form, async () => {
    await post("react", { id: turn.id, kind: "better", text: field.value, scope: scope.value });
    close();
    show("Noted: from now on I answer like this.");
    await page.refresh();
  });
}

function openMessage(item, turn) {
  const save = make("button", { className: "primary", textContent: "Send this" });
  const [close, field, form] = openForm(item, turn, "message", "Your message; the turns after it leave the talk", save);
  field.value ||= turn.prompt;
  onSubmit(form, async () => {
    const text = field.value.trim();
    if (text && await page.send(text, turn)) close();
  });
}

export function makeTurn({ turn, question, isLast }) {
  const item = make("li", {}, make("p", { className: "own", dir: "auto", textContent: turn.prompt }));
  const actions = make("p", { className: "row" });
  const edit = makeButton("Edit", "Edit your message", () => openMessage(item, turn));
  const drop = makeButton("✕", "Forget this turn", () => page.forgetAll({ ids: [turn.id] }));
  const again = (label) => makeButton("↻", label, () => attempt(() => page.send(turn.prompt, turn)));
  if (!turn.reply) {
    actions.append(Object.assign(again("Answer again"), { textContent: "Answer again" }), edit, drop);
    item.append(make("p", { className: "soft", textContent: "The reply to this was forgotten." }), actions);
    return item;
  }
  item.append(makeMarkdown(turn.reply));
  if (turn.first && turn.first !== turn.reply) item.append(makeFold("The first reply", makeMarkdown(turn.first)));
  const lines = turn.read.map((text) => make("li", { textContent: text, dir: "auto" }));
  if (lines.length) item.append(makeFold(`From ${count(lines.length, "earlier message")} of yours`, make("ul", {}, ...lines)));
  for (const [kind, icon, label] of [["up", "👍", "A good reply"], ["down", "👎", "A bad reply"]]) {
    const button = makeButton(icon, label, () => change("react", { id: turn.id, kind }));
    actions.append(Object.assign(button, { ariaPressed: String(turn.reaction === kind) }));
  }
  actions.append(makeButton("✎", "Write the reply that you wanted", () => openEditor(item, turn)));
  if (isLast) actions.append(again("Try again"));
  actions.append(makeButton("Copy", "Copy the reply", () => attempt(() => copy(turn.reply))), edit);
  const pin = makeButton("📌", "Every reply reads this message of yours", () => change("pin", { id: turn.id }));
  actions.append(Object.assign(pin, { ariaPressed: String(turn.is_pinned) }), drop);
  if (question) {
    const skip = makeButton("Skip", "Skip the question", () => change("skip", {}, ""));
    item.append(make("p", { className: "question row" }, question, skip));
  }
  item.append(actions);
  if (drafts.has(`better-${turn.id}`)) openEditor(item, turn);
  return item;
}

export function makeHabitQuestion({ label, question }) {
  const answers = Object.entries({ everywhere: "Everywhere", here: "Only for things like these", "": "Leave it to me" });
  const answer = (scope) => () => change("habit", { text: label, scope });
  const buttons = answers.map(([scope, text]) => makeButton(text, text, answer(scope), ""));
  return make("li", { className: "question row" }, question, ...buttons);
}

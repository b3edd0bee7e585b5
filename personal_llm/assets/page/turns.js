// the turns of a talk
import { $, make, makeLines, onSubmit, show, stamp } from "./dom.js";
import { makeMarkdown } from "./markdown.js";
import { post } from "./server.js";

export const page = {}; // what chat.js does for the turns and the lists: loadTalk, openTalk, send, refresh, forget
const drafts = new Map(); // id of a field -> what is typed in it: it outlives its element

export async function change(name, body) {
  await post(name, body);
  show("Noted.");
  await page.refresh();
}

function openForm(item, kind, turn, start, action) { // action: of a text; false: the form stays
  item.querySelector("form")?.remove();
  const id = `${kind}-${turn.id}`;
  const close = () => {
    drafts.delete(id);
    form.remove();
    item.querySelector("button:last-child").focus();
  };
  const form = stamp(`${kind}-form`, {}, { cancel: close });
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
  openForm(item, "better", turn, turn.reply, async (text, form) => {
    const scope = form.querySelector("select").value;
    const { kind } = await post("react", { id: turn.id, kind: "better", text, scope });
    show(kind === "up" ? "You approved the reply." : "Noted: from now on I answer like this.");
  });
  item.querySelector("form select").value = turn.scope; // what the person said before
}

const openMessage = (item, turn) => {
  openForm(item, "message", turn, turn.prompt, (text) => text.trim() !== "" && page.send(text.trim(), turn));
};

export function makeTurn({ turn, question, isLast }) {
  const id = turn.id;
  const again = () => page.send(turn.prompt, turn);
  const react = (kind) => () => change("react", { id, kind });
  const own = {
    message: () => openMessage(item, turn),
    drop: () => page.forget({ ids: [id] }),
  };
  const better = () => openEditor(item, turn);
  const ofReply = { up: react("up"), down: react("down"), better, again: isLast && again };
  const board = navigator.clipboard; // none in a page from another computer
  ofReply.copy = board && (() => board.writeText(turn.reply).then(() => show("Copied.")));
  const read = turn.read.length > 0 && make("ul", {}, ...makeLines(turn.read));
  const reply = makeMarkdown(turn.reply || "The reply to this was forgotten.");
  const texts = { own: turn.prompt, answered: reply, read, question };
  const item = stamp("turn-item", texts, { ...own, ...(turn.reply ? ofReply : { answer: again }) });
  const pressed = { up: turn.reaction === "up", down: turn.reaction === "down" };
  for (const name in pressed) item.querySelector(`[name=${name}]`)?.setAttribute("aria-pressed", pressed[name]);
  if (drafts.has(`better-${id}`)) openEditor(item, turn);
  return item;
}

export function fillScopes(scopes) { // name of a scope -> its label
  const rows = Object.entries(scopes).map(([value, label]) => [value, label[0].toUpperCase() + label.slice(1)]);
  const options = () => rows.map(([value, textContent]) => make("option", { value, textContent }));
  for (const id of ["better-form", "known-item"]) $(id).content.querySelector("select").replaceChildren(...options());
  const buttons = rows.map(([value, textContent]) => make("button", { type: "button", name: value || "auto", textContent }));
  $("habit-question").content.querySelector(".scopes").replaceChildren(...buttons);
}

export function makeHabitQuestion({ label, question }, scopes) {
  const answer = (scope) => [scope || "auto", () => change("habit", { text: label, scope })];
  return stamp("habit-question", { question }, Object.fromEntries(Object.keys(scopes).map(answer)));
}

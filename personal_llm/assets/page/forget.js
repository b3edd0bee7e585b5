// the list of what goes, before it goes
import { $, attempt, count, make, makeLines, show } from "./dom.js";
import { post } from "./server.js";

const REPLIES = "Replies only; your messages stay, and you can have them answered again. A tick: the reply goes.";

function makeReply(row) {
  const why = row.can_stay ? "came later in this talk" : "read it, or holds it";
  const liked = row.is_liked ? " · you liked this reply" : "";
  const goes = make("input", { type: "checkbox", checked: true, disabled: !row.can_stay, value: row.id });
  return make("li", {}, make("label", { dir: "auto" }, goes, ` ${row.prompt} → ${row.reply} (${why}${liked})`));
}

export const forget = (request, onDone) => attempt(async () => {
  const { others, rows } = await post("forget", { ...request, dry: true });
  if (!others.length && !rows.length) return show("Nothing that is stored holds this.");
  const lines = makeLines(rows.length ? [...others, REPLIES] : others);
  $("confirm-lines").replaceChildren(...lines, ...rows.map(makeReply));
  $("confirm").returnValue = "no";
  $("confirm").showModal();
  await new Promise((done) => { $("confirm").onclose = done; });
  if ($("confirm").returnValue !== "yes") return show("Kept.");
  const keep = [...$("confirm-lines").querySelectorAll("input:not(:checked)")].map((one) => one.value);
  await post("forget", { ...request, keep });
  show(`Forgotten: ${count(others.length + rows.length - keep.length, "item")}.`);
  await onDone();
  if (document.activeElement === document.body) $("main").focus(); // the button that was pressed has gone, too
});

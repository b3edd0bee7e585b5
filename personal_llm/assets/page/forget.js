// the list of what goes, before it goes
import { $, attempt, count, make, show } from "./dom.js";
import { post } from "./server.js";

const text = (content) => make("li", { textContent: content, dir: "auto" });

function makeReply(row) {
  const liked = row.is_liked ? " · you liked this reply" : "";
  const why = row.can_stay ? "came later in this talk" : "read it, or holds it";
  const goes = make("input", { type: "checkbox", checked: true, disabled: !row.can_stay, value: row.id });
  const label = make("label", { dir: "auto" }, goes, ` ${row.prompt} → ${row.reply} (${why}${liked})`);
  return make("li", {}, label);
}

export const forget = (request, onDone) => attempt(async () => {
  const { others, rows } = await post("forget", { ...request, dry: true });
  if (!others.length && !rows.length) return show("Nothing that is stored holds this.");
  const head = text("Replies only; your messages stay, and you can have them answered again. A tick: the reply goes.");
  $("confirm-lines").replaceChildren(...others.map(text), ...(rows.length ? [head, ...rows.map(makeReply)] : []));
  $("confirm").returnValue = "no";
  $("confirm").showModal();
  await new Promise((done) => { $("confirm").onclose = done; });
  if ($("confirm").returnValue !== "yes") return show("Kept.");
  const keep = [...$("confirm-lines").querySelectorAll("input:not(:checked)")].map((one) => one.value);
  await post("forget", { ...request, keep });
  show(`Forgotten: ${count(others.length + rows.length - keep.length, "item")}.`);
  return onDone();
});

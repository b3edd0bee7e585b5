// the list of what goes, before it goes
import { $, attempt, make, makeLines, show } from "./dom.js";
import { post } from "./server.js";

const REPLIES = "These later replies may repeat it, so they are deleted too, unless you untick them. Your messages to them stay.";
const describe = (line) => line.replace(/^dialogue/, "Your message and its reply")
  .replace(/^earlier turn of a dialogue/, "A message from another program")
  .replace(/^adapter/, "A fine-tune that learned from it");

function makeReply(row) {
  const why = row.can_stay ? "came later in this talk" : "uses or contains what is deleted";
  const liked = row.is_liked ? " · you liked this reply" : "";
  const goes = make("input", { type: "checkbox", checked: true, disabled: !row.can_stay, value: row.id });
  return make("li", {}, make("label", { dir: "auto" }, goes, ` ${row.prompt} → ${row.reply} (${why}${liked})`));
}

export const forget = (request, onDone) => attempt(async () => {
  const { others, rows } = await post("forget", { ...request, dry: true });
  if (!others.length && !rows.length) return show("Nothing stored contains these words.");
  const lines = makeLines([...others.map(describe), ...(rows.length ? [REPLIES] : [])]);
  $("confirm-lines").replaceChildren(...lines, ...rows.map(makeReply));
  $("confirm").returnValue = "no";
  $("confirm").showModal();
  await new Promise((done) => { $("confirm").onclose = done; });
  if ($("confirm").returnValue !== "yes") return show("Cancelled: nothing was deleted.");
  const keep = [...$("confirm-lines").querySelectorAll("input:not(:checked)")].map((one) => one.value);
  await post("forget", { ...request, keep });
  show(`Deleted for good${keep.length ? ", except for the replies you kept" : ""}.`);
  await onDone();
  if (document.activeElement === document.body) $("main").focus(); // the button that was pressed has gone, too
});

// the list of what goes, before it goes
import { $, attempt, make, makeLine, show } from "./dom.js";
import { post } from "./server.js";

const USED = "These replies used it or contain the words, and are deleted, too. Your messages stay, and so do your own texts:";
const LATER = "These came later in the same chat and may repeat it. Untick the replies that should stay; your messages stay:";
const describe = (line) => line.replace(/^dialogue/, "Your message and its reply")
  .replace(/^earlier turn of a dialogue/, "A message from another program")
  .replace(/^adapter/, "A fine-tune that learned from it");

function makeReply({ id, prompt, reply, can_stay, is_liked }, goes, redraw) {
  const text = ` ${prompt} → ${reply}${is_liked ? " (you liked this reply)" : ""}`;
  if (!can_stay) return make("li", { dir: "auto", className: "goes", textContent: text });
  const box = make("input", { type: "checkbox", checked: goes, value: id, onchange: redraw });
  return make("li", {}, make("label", { dir: "auto" }, box, text));
}

export const forget = (request, onDone) => attempt(async () => {
  const plan = (keep = []) => post("forget", { ...request, keep, dry: true });
  const listKept = () => [...$("confirm-lines").querySelectorAll("input:not(:checked)")].map((one) => one.value);
  const { rows, ...first } = await plan();
  if (!first.others.length && !rows.length) return show("Nothing stored contains these words.");
  const draw = ({ others, replies }) => {
    const list = (isFree, title) => {
      const some = rows.filter((row) => row.can_stay === isFree).map((row) => makeReply(row, replies.includes(row.id), redraw));
      return some.length ? [makeLine(title), ...some] : [];
    };
    $("confirm-lines").replaceChildren(...others.map(describe).map(makeLine), ...list(false, USED), ...list(true, LATER));
  };
  const redraw = ({ target }) => attempt(async () => { // a fine-tune may stay with the reply that it learned
    draw(await plan(listKept()));
    const box = $("confirm-lines").querySelector(`[value="${target.value}"]`);
    if (document.activeElement === document.body) box?.focus(); // unless the focus went on meanwhile
  });
  draw(first);
  $("confirm").returnValue = "no";
  $("confirm").showModal();
  await new Promise((done) => { $("confirm").onclose = done; });
  if ($("confirm").returnValue !== "yes") return show("Cancelled: nothing was deleted.");
  const keep = listKept();
  await post("forget", { ...request, keep });
  show(`Deleted for good${keep.length ? ", except for the replies you kept" : ""}.`);
  await onDone();
  if (document.activeElement === document.body) $("main").focus(); // the button that was pressed has gone, too
});

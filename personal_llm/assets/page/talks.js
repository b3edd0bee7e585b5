// the list of talks: search, names, files
import { $, attempt, make, makeButton, onSubmit, show } from "./dom.js";
import { get, post } from "./server.js";
import { change, page } from "./turns.js";

function rename(item, row) {
  const field = make("input", { value: row.title, ariaLabel: "Name of the talk", required: true });
  const form = make("form", { className: "row" }, field, make("button", { textContent: "Name it" }));
  onSubmit(form, () => {
    field.defaultValue = field.value; // it is sent: nothing is typed here any more
    form.remove();
    return change("name", { talk: row.talk, text: field.value });
  });
  item.append(form);
  field.select();
}

async function save(row) {
  const { rows } = await get("export", { talk: row.talk });
  const file = new Blob([JSON.stringify(rows, null, 1)], { type: "application/json" });
  const link = make("a", { href: URL.createObjectURL(file), download: "talk.json" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

export function makeTalk({ row, isOpen }) {
  const open = makeButton(row.title, row.title, () => attempt(() => page.openTalk(row.talk)), "small title");
  if (isOpen) open.ariaCurrent = "true";
  const item = make("li", {}, open);
  const name = makeButton("✎", `Rename the talk: ${row.title}`, () => rename(item, row));
  const file = makeButton("⤓", `Save the talk: ${row.title}`, () => attempt(() => save(row)));
  const forget = () => page.forgetAll({ talk: row.talk });
  item.append(name, file, makeButton("✕", `Forget the talk: ${row.title}`, forget, "small danger"));
  return item;
}

$("import").onclick = () => $("file").click();
$("file").onchange = () => attempt(async () => {
  const text = await $("file").files[0].text();
  $("file").value = "";
  let rows = null;
  try { rows = JSON.parse(text); } catch { /* no JSON */ }
  const isList = Array.isArray(rows) && rows.every((row) => row instanceof Object);
  if (!isList) throw new Error("This file is no talk that was saved here; personal-llm personalize reads other exports.");
  await page.openTalk((await post("add", { rows })).talk);
  show("The talk is here.");
});
let wait = 0; // the timer of the next search
$("search").oninput = () => {
  clearTimeout(wait);
  wait = setTimeout(() => attempt(page.loadTalk), 200);
};

// the list of talks: search, names, files
import { $, attempt, make, stamp } from "./dom.js";
import { get, post } from "./server.js";
import { page } from "./turns.js";

function rename(row) {
  const text = prompt("Name of the talk", row.title);
  return text && post("name", { talk: row.talk, text }).then(page.refresh);
}

async function save(row) {
  const { rows } = await get("export", { talk: row.talk });
  const file = new Blob([JSON.stringify(rows, null, 1)], { type: "application/json" });
  make("a", { href: URL.createObjectURL(file), download: "talk.json" }).click();
}

export function makeTalk(row) {
  const open = () => page.openTalk(row.talk);
  const drop = () => page.forget({ talk: row.talk });
  const actions = { open, rename: () => rename(row), save: () => save(row), drop };
  const item = stamp("talk-item", { title: row.title }, actions, row.title);
  if (row.isOpen) item.firstElementChild.ariaCurrent = "true";
  return item;
}

let wait = 0; // the timer of the next search
$("search").oninput = () => {
  clearTimeout(wait);
  wait = setTimeout(() => attempt(page.loadTalk), 200);
};

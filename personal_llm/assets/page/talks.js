// the list of chats: days, search, names, files
import { $, attempt, make, stamp, sync } from "./dom.js";
import { get, post } from "./server.js";
import { page } from "./turns.js";

function rename(row) {
  const text = prompt("Name of the chat", row.title);
  return text && post("name", { talk: row.talk, text }).then(page.refresh);
}

async function save(row) {
  const { rows } = await get("export", { talk: row.talk });
  const file = new Blob([JSON.stringify(rows, null, 1)], { type: "application/json" });
  make("a", { href: URL.createObjectURL(file), download: "chat.json" }).click();
}

const DAY = { weekday: "long", day: "numeric", month: "long", year: "numeric" };

function nameDay(seconds) {
  const [day, today] = [new Date(seconds * 1000), new Date()].map((time) => time.setHours(0, 0, 0, 0));
  const ago = Math.round((today - day) / 864e5);
  return ["Today", "Yesterday"][ago] || new Date(day).toLocaleDateString(undefined, DAY);
}

function makeTalk(row) {
  if (row.day) return make("li", { className: "soft day", textContent: row.day });
  const open = () => page.openTalk(row.talk);
  const drop = () => page.forget({ talk: row.talk });
  const actions = { open, rename: () => rename(row), save: () => save(row), drop };
  const item = stamp("talk-item", { title: row.title }, actions, row.title);
  if (row.isOpen) item.firstElementChild.ariaCurrent = "true";
  return item;
}

export function fillTalks(rows, open, title) { // the newest first, below the names of their days
  const days = Map.groupBy(rows, (row) => nameDay(row.time));
  const parts = [...days].flatMap(([day, talks]) => [{ talk: `on ${day}`, day }, ...talks.map(
    (row) => ({ ...row, isOpen: row.talk === open }),
  )]);
  sync($("talk-list"), parts, "talk", makeTalk);
  $("talk-list").querySelector("[aria-current]")?.scrollIntoView({ block: "nearest" });
  $("title").textContent = title;
}

let wait = 0; // the timer of the next search
$("search").oninput = () => {
  clearTimeout(wait);
  wait = setTimeout(() => attempt(page.loadTalk), 200);
};

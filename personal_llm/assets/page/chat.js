// one talk
import { $, attempt, isWide, make, show, sync } from "./dom.js";
import { forget } from "./forget.js";
import { loadKnown, loadStatus } from "./known.js";
import { makeMarkdown } from "./markdown.js";
import { ask, get, post, readEvents, session } from "./server.js";
import { makeTalk } from "./talks.js";
import { fillScopes, makeHabitQuestion, makeTurn, page } from "./turns.js";

let talk = ""; // key of the talk on the page; empty: the newest one; "new": one without a turn
let reply = null; // the `AbortController` of the reply that is being written
let written = ""; // of that reply
let isAtEnd = true; // whether the end of the talk is seen, and stays so while its parts grow
const CUTS = { length: "The reply was cut off at its length limit.", content_filter: "The server's content filter cut off the reply." };
const reasons = new Map(); // id of a turn -> why its reply used corrections, in lines

$("main").onscroll = ({ target }) => { isAtEnd = target.scrollHeight - target.scrollTop - target.clientHeight < 80; };
const watcher = new ResizeObserver(() => { if (isAtEnd && !$("chat").hidden) goToEnd(); });
for (const id of ["main", "turns"]) watcher.observe($(id));
export const goToEnd = () => { $("main").scrollTop = $("main").scrollHeight; };
export const isWriting = () => reply !== null;

page.loadTalk = async () => {
  const key = talk;
  const data = await get("talks", { talk: key, words: $("search").value });
  if (key !== talk || reply) return; // another talk was opened in between, or a reply is being written
  const { turns, habit, scopes } = data;
  fillScopes(scopes);
  talk = data.talk || "new";
  sync($("talk-list"), data.talks.map((row) => ({ ...row, isOpen: row.talk === talk })), "talk", makeTalk);
  const rows = turns.map((turn, place) => {
    const question = turn.id === data.question ? data.text : "";
    return { id: turn.id, turn, question, isLast: place === turns.length - 1, reasons: reasons.get(turn.id) || [] };
  });
  if (habit && turns.length) rows.push({ id: "habit", habit });
  sync($("turns"), rows, "id", (row) => (row.turn ? makeTurn(row) : makeHabitQuestion(row.habit)));
  $("empty").hidden = turns.length > 0;
};

page.openTalk = async (key) => {
  stopReply();
  await reply?.isWhole;
  talk = key;
  $("talks").open = isWide();
  if (!isWide()) $("talks").firstElementChild.focus(); // the list has closed
  $("turns").replaceChildren();
  await page.loadTalk();
  goToEnd();
};

page.refresh = () => Promise.all([page.loadTalk(), loadKnown(), loadStatus()]);
page.forget = (request) => forget(request, () => { reasons.clear(); return page.refresh(); }); // they quote messages

export function stopReply() {
  if (reply && written) attempt(() => post("halt"));
  else reply?.abort();
}

async function write(item, text, turn) { // whether a reply came
  const messages = [{ role: "user", content: text }];
  const body = { model: "personal", stream: true, talk: talk === "new" ? "" : talk, messages, replaces: turn?.id };
  const other = { temperature: 0.8, seed: Math.floor(Math.random() * 2 ** 31) };
  if (turn?.reply && turn.prompt === text) Object.assign(body, other); // another try
  try {
    for await (const event of readEvents(await ask("/v1/chat/completions", body, reply.signal))) {
      if (event.error) throw new Error(event.error.message);
      written += event.choices[0]?.delta.content || "";
      talk = event.me?.talk || talk;
      if (event.me?.id) reasons.set(event.me.id, event.me.reasons || []);
      if (written) item.lastChild.replaceWith(makeMarkdown(written));
      else if (event.me?.is_thinking) item.lastChild.textContent = "Thinking …";
      if (CUTS[event.choices[0]?.finish_reason]) show(CUTS[event.choices[0].finish_reason]);
    }
    return true;
  } catch (error) {
    if (!turn) $("line").value ||= text; // nothing was stored
    show(error.name === "AbortError" ? "Stopped: this message and its reply are not stored." : error.message);
    return false;
  }
}

page.send = async (text, turn = null) => { // turn: whose place the new one takes; returns whether a reply came
  if (reply) return false;
  const waiting = make("p", { className: "soft", textContent: "Reading the talk and what I know about you …" });
  const item = make("li", {}, make("p", { className: "own", dir: "auto", textContent: text }), waiting);
  const shown = [...$("turns").children];
  const from = turn ? shown.findIndex((one) => one.dataset.key === turn.id) : shown.length;
  const gone = turn && !turn.reply ? [shown[from]] : shown.slice(from);
  for (const one of gone) one.hidden = true;
  $("turns").append(item);
  $("empty").hidden = true;
  $("send").textContent = "Stop";
  show("");
  goToEnd();
  written = "";
  reply = new AbortController();
  reply.isWhole = write(item, text, turn);
  const isWhole = await reply.isWhole;
  reply = null;
  for (const one of isWhole ? gone : [item]) one.remove();
  for (const one of gone) one.hidden = false;
  if (session.token) await attempt(page.loadTalk);
  $("send").textContent = "Send";
  if (isWhole) goToEnd();
  if (document.activeElement === document.body) $("turns").lastElementChild?.querySelector("button")?.focus();
  await attempt(loadStatus);
  return isWhole;
};

// one chat
import { $, attempt, make, show, sync, wide } from "./dom.js";
import { forget } from "./forget.js";
import { loadKnown, loadStatus } from "./known.js";
import { makeMarkdown } from "./markdown.js";
import { ask, get, post, readEvents, session } from "./server.js";
import { fillTalks } from "./talks.js";
import { change, fillScopes, makeHabitQuestion, makeTurn, page } from "./turns.js";

let talk = ""; // key of the chat on the page; empty: the newest one; "new": one without a turn
let reply = null; // a promise while this page waits for a reply: whether it came
let timer = 0; // of the next look at a reply that is being written without this page
let isAtEnd = true; // whether the end of the chat is seen, and stays so while its parts grow
const CUTS = { length: "The reply was cut off at its length limit.", content_filter: "The server's content filter cut off the reply." };
const reasons = new Map(); // id of a turn -> why its reply used corrections, in lines

$("scroller").onscroll = ({ target }) => { isAtEnd = target.scrollHeight - target.scrollTop - target.clientHeight < 80; };
const watcher = new ResizeObserver(() => { if (isAtEnd && !$("chat").hidden) goToEnd(); });
for (const id of ["scroller", "turns"]) watcher.observe($(id));
export const goToEnd = () => { $("scroller").scrollTop = $("scroller").scrollHeight; };
export const isWriting = () => $("send").textContent === "Stop";

page.loadTalk = async () => {
  const key = talk;
  const data = await get("talks", { talk: key, words: $("search").value });
  if (key !== talk || reply) return; // another chat was opened in between, or a reply is being written
  const { turns, habit, scopes } = data;
  fillScopes(scopes);
  talk = data.talk || "new";
  fillTalks(data.talks, talk, data.title);
  const rows = turns.map((turn, place) => {
    const question = turn.id === data.question ? data.text : "";
    const why = data.is_taught ? reasons.get(turn.id) : [];
    return { id: turn.id, turn, question, isLast: place === turns.length - 1, reasons: why || [] };
  });
  if (habit && turns.length) rows.push({ id: "habit", habit });
  sync($("turns"), rows, "id", (row) => (row.turn ? makeTurn(row) : makeHabitQuestion(row.habit)));
  $("steps").dataset.step = turns.length ? 2 : 1;
  const isGoingOn = turns.some((turn) => turn.is_writing); // the page was loaded anew, or another one asked
  $("send").textContent = isGoingOn ? "Stop" : "Send";
  clearTimeout(timer);
  if (isGoingOn) timer = setTimeout(() => attempt(page.loadTalk), 500);
};

page.openTalk = async (key) => {
  stopReply();
  await reply;
  talk = key;
  if (!wide.matches) openTalks(false);
  $("turns").replaceChildren();
  await page.loadTalk();
  goToEnd();
};

export function openTalks(isOpen) { // the list of chats; on a phone it closes on a choice
  $("talks").hidden = !isOpen;
  $("open-talks").ariaExpanded = String(isOpen);
}

page.refresh = () => Promise.all([page.loadTalk(), loadKnown(), loadStatus()]);
page.forget = (request) => forget(request, () => { reasons.clear(); return page.refresh(); }); // they quote messages

export const stopReply = () => isWriting() && attempt(() => post("halt"));

async function write(item, body) { // whether a reply came
  let written = "";
  try {
    for await (const event of readEvents(await ask("/v1/chat/completions", body))) {
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
    if (talk === "new") talk = ""; // the message may be stored: the newest chat has it
    show(error.message);
    return false;
  }
}

async function command(text) { // one of the terminal's
  const [name, ...words] = text.split(/\s+/);
  if (name === "/new") return page.openTalk("new");
  if (name === "/forget" && words.length) return page.forget({ text: words.join(" ") });
  return change("command", { text, talk: talk === "new" ? "" : talk }).catch((error) => {
    $("line").value ||= text;
    throw error;
  });
}

page.send = async (text, turn = null, isVaried = false) => { // turn: whose place the new one takes; returns whether a reply came
  if (isWriting()) return false;
  if (/^\/\w+(\s|$)/.test(text)) return command(text);
  const waiting = make("p", { className: "soft", textContent: "Reading the chat and what I know about you …" });
  const item = make("li", {}, make("p", { className: "own", dir: "auto", textContent: text }), waiting);
  const shown = [...$("turns").children];
  const from = turn ? shown.findIndex((one) => one.dataset.key === turn.id) : shown.length;
  const gone = turn && !turn.reply ? [shown[from]] : shown.slice(from);
  for (const one of gone) one.hidden = true;
  $("turns").append(item);
  $("send").textContent = "Stop";
  show();
  goToEnd();
  const messages = [{ role: "user", content: text }];
  const body = { model: "personal", stream: true, talk: talk === "new" ? "" : talk, messages, replaces: turn?.id };
  if (isVaried) Object.assign(body, { temperature: 0.8, seed: Math.floor(Math.random() * 2 ** 31) });
  reply = write(item, body);
  const isWhole = await reply;
  reply = null;
  for (const one of isWhole ? gone : [item]) one.remove();
  for (const one of gone) one.hidden = false;
  if (session.key) await attempt(page.loadTalk);
  if (!isWhole) $("send").textContent = "Send"; // perhaps nothing could be loaded
  if (isWhole) goToEnd();
  else if (!turn && $("turns").lastChild?.querySelector(".own").textContent !== text) $("line").value ||= text; // not stored
  if (document.activeElement === document.body) $("turns").lastElementChild?.querySelector("button")?.focus();
  await attempt(loadStatus);
  return isWhole;
};

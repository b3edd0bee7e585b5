// one chat
import { $, attempt, make, show, sync, wide } from "./dom.js";
import { forget } from "./forget.js";
import { loadKnown, loadStatus } from "./known.js";
import { makeMarkdown } from "./markdown.js";
import { ask, get, post, readEvents, session } from "./server.js";
import { fillTalks } from "./talks.js";
import { fillScopes, makeHabitQuestion, makeTurn, page } from "./turns.js";

let talk = ""; // key of the chat on the page; empty: the newest one; "new": one without a turn
let reply = null; // a promise while a reply is being written: whether it came
let isAtEnd = true; // whether the end of the chat is seen, and stays so while its parts grow
const CUTS = { length: "The reply was cut off at its length limit.", content_filter: "The server's content filter cut off the reply." };
const reasons = new Map(); // id of a turn -> why its reply used corrections, in lines

$("scroller").onscroll = ({ target }) => { isAtEnd = target.scrollHeight - target.scrollTop - target.clientHeight < 80; };
const watcher = new ResizeObserver(() => { if (isAtEnd && !$("chat").hidden) goToEnd(); });
for (const id of ["scroller", "turns"]) watcher.observe($(id));
export const goToEnd = () => { $("scroller").scrollTop = $("scroller").scrollHeight; };
export const isWriting = () => reply !== null;

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
    return { id: turn.id, turn, question, isLast: place === turns.length - 1, reasons: reasons.get(turn.id) || [] };
  });
  if (habit && turns.length) rows.push({ id: "habit", habit });
  sync($("turns"), rows, "id", (row) => (row.turn ? makeTurn(row) : makeHabitQuestion(row.habit)));
  $("steps").dataset.step = turns.length ? 2 : 1;
};

page.openTalk = async (key) => {
  stopReply();
  await reply;
  talk = key;
  if (!wide.matches) openTalks(false);
  $("turns").replaceChildren();
  await page.loadTalk();
  goToEnd();
  attempt(page.watch);
};

export function openTalks(isOpen) { // the list of chats; on a phone it closes on a choice
  $("talks").hidden = !isOpen;
  $("open-talks").ariaExpanded = String(isOpen);
}

page.refresh = () => Promise.all([page.loadTalk(), loadKnown(), loadStatus()]);
page.forget = (request) => forget(request, () => { reasons.clear(); return page.refresh(); }); // they quote messages

export const stopReply = () => reply && attempt(() => post("halt"));

async function write(response, begin) { // begin: of the first event, which names the turn; whether a reply came
  let written = "";
  let turn = null;
  for await (const event of readEvents(response)) {
    if (event.error) throw new Error(event.error.message);
    if (event.me?.id) {
      talk = event.me.talk;
      turn ||= begin(event.me);
      if (event.me.reasons) reasons.set(event.me.id, event.me.reasons);
    }
    written += event.choices[0]?.delta.content || "";
    if (written) turn.lastChild.replaceWith(makeMarkdown(written));
    else if (event.me?.is_thinking) turn.lastChild.textContent = "Thinking …";
    if (CUTS[event.choices[0]?.finish_reason]) show(CUTS[event.choices[0].finish_reason]);
  }
  return turn !== null;
}

function makeWaiting(text) {
  const waiting = make("p", { className: "soft", textContent: "Reading the chat and what I know about you …" });
  const item = make("li", {}, make("p", { className: "own", dir: "auto", textContent: text }), waiting);
  $("turns").append(item);
  goToEnd();
  return item;
}

function hideFrom(id, isAlone) { // the turn whose place the new one takes, and those after it
  const shown = [...$("turns").children];
  const from = shown.findIndex((one) => one.dataset.key === id);
  const gone = from < 0 ? [] : shown.slice(from, isAlone ? from + 1 : undefined);
  for (const one of gone) one.hidden = true;
  return gone;
}

async function follow(writing) { // until the reply has ended; whether it came
  $("send").textContent = "Stop";
  reply = writing.catch((error) => show(error.message));
  const isWhole = await reply;
  reply = null;
  if (session.key) await attempt(page.loadTalk);
  $("send").textContent = "Send";
  return isWhole;
}

page.send = async (text, turn = null) => { // turn: whose place the new one takes; returns whether a reply came
  if (reply) return false;
  show();
  const gone = turn ? hideFrom(turn.id, !turn.reply) : [];
  const item = makeWaiting(text);
  const messages = [{ role: "user", content: text }];
  const body = { model: "personal", stream: true, talk: talk === "new" ? "" : talk, messages, replaces: turn?.id };
  const other = { temperature: 0.8, seed: Math.floor(Math.random() * 2 ** 31) };
  if (turn?.reply && turn.prompt === text) Object.assign(body, other); // another try
  let isStored = false;
  const begin = () => { isStored = true; return item; };
  const isWhole = await follow(ask("/v1/chat/completions", body).then((response) => write(response, begin)));
  item.remove();
  for (const one of gone) one.hidden = false;
  if (isWhole) goToEnd();
  if (!isStored && !turn) $("line").value ||= text;
  if (document.activeElement === document.body) $("turns").lastElementChild?.querySelector("button")?.focus();
  await attempt(loadStatus);
  return isWhole;
};

page.watch = async () => { // a reply that is being written to this chat: the page was loaded anew, or another one asked
  const response = await ask(`/me/reply?talk=${talk}`);
  if (response.status === 204 || reply) return;
  let [item, gone] = [null, []];
  const begin = (me) => {
    gone = hideFrom(me.id);
    item = makeWaiting(me.prompt);
    return item;
  };
  await follow(write(response, begin));
  item?.remove();
  for (const one of gone) one.hidden = false;
};

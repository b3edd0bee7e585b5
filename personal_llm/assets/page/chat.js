// one talk
import { $, attempt, make, show, sync } from "./dom.js";
import { forget } from "./forget.js";
import { learning, loadKnown, loadStatus } from "./known.js";
import { makeMarkdown } from "./markdown.js";
import { ask, get, post, readEvents, session } from "./server.js";
import { makeTalk } from "./talks.js";
import { makeHabitQuestion, makeTurn, page } from "./turns.js";

let talk = ""; // key of the talk on the page; empty: a new one
let reply = null; // the `AbortController` of the reply that is being written
let written = ""; // of that reply

const isAtEnd = () => $("main").scrollHeight - $("main").scrollTop - $("main").clientHeight < 80;
export const goToEnd = () => { $("main").scrollTop = $("main").scrollHeight; };

function drawTalk({ talks, turns, question, text, habit }) {
  const count = $("turns").children.length;
  const stays = isAtEnd();
  sync($("talk-list"), talks.map((row) => ({ row, isOpen: row.talk === talk })), ({ row }) => row.talk, makeTalk);
  const shown = turns.map((turn, place) => ({ turn, question: turn.id === question ? text : "", isLast: place === turns.length - 1 }));
  const asked = habit && turns.length ? [habit] : [];
  sync($("turns"), [...shown, ...asked], (row) => row.turn?.id || "habit", (row) => (row.turn ? makeTurn(row) : makeHabitQuestion(row)));
  $("empty").hidden = turns.length > 0;
  if (stays || count === 0) goToEnd();
}

page.loadTalk = async () => {
  const key = talk;
  const data = await get("talks", { talk: key, words: $("search").value });
  if (key !== talk || reply) return; // another talk was opened in between, or a reply is being written
  if (!key && isFresh) data.turns = [];
  else talk = data.talk;
  drawTalk(data);
};

let isFresh = false; // a new talk without a turn
page.openTalk = async (key) => {
  stopReply();
  if (reply) await reply.ended;
  talk = key;
  isFresh = !key;
  $("turns").replaceChildren();
  await page.loadTalk();
  goToEnd();
};

page.refresh = () => Promise.all([page.loadTalk(), loadKnown(), loadStatus()]);
page.forgetAll = (request) => forget(request, page.refresh);

export const isWriting = () => reply !== null;

export function stopReply() {
  if (reply && written) attempt(() => post("halt"));
  else reply?.abort();
}

page.send = async (text, turn = null) => { // turn: whose place the new one takes; returns whether a reply came
  if (reply) return false;
  let end = null;
  reply = new AbortController();
  reply.ended = new Promise((done) => { end = done; });
  written = "";
  const item = make("li", {}, make("p", { className: "own", dir: "auto", textContent: text }));
  item.dataset.key = "new";
  const reason = "reading the talk and what I know about you …" + (learning.since ? " It takes longer while I learn." : "");
  const waiting = item.appendChild(make("p", { className: "soft", textContent: reason }));
  $("empty").hidden = true;
  const shown = [...$("turns").children];
  const from = turn ? shown.findIndex((one) => one.dataset.key === turn.id) : shown.length;
  const gone = turn && !turn.reply ? [shown[from]] : shown.slice(from); // whose place it takes
  for (const one of gone) one.hidden = true;
  $("turns").append(item);
  $("send").textContent = "Stop";
  show("");
  goToEnd();
  let isWhole = false;
  try {
    const body = { model: "personal", stream: true, talk, messages: [{ role: "user", content: text }] };
    if (turn) body.replaces = turn.id;
    if (turn?.reply && turn.prompt === text) Object.assign(body, { temperature: 0.8, seed: Math.floor(Math.random() * 2 ** 31) });
    for await (const event of readEvents(await ask("/v1/chat/completions", body, reply.signal))) {
      if (event.error) throw new Error(event.error.message);
      const stays = isAtEnd();
      written += event.choices[0]?.delta.content || "";
      talk = event.me?.talk || talk;
      if (written) (item.querySelector(".reply") || waiting).replaceWith(makeMarkdown(written));
      if (stays) goToEnd();
    }
    isWhole = true;
    isFresh = false;
  } catch (error) {
    if (!turn) $("line").value ||= text; // nothing was stored
    show(error.name === "AbortError" ? "Stopped; the turn is not kept." : error.message);
  }
  reply = null;
  end();
  for (const one of isWhole ? gone : [item]) one.remove();
  for (const one of gone) one.hidden = false;
  if (session.token) await attempt(page.loadTalk);
  $("send").textContent = "Send";
  if (isWhole) goToEnd();
  await attempt(loadStatus);
  return isWhole;
};

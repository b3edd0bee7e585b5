const $ = (id) => document.getElementById(id);
const TOKEN = "personal_llm.token"; // its place in this tab's storage
const EXAMPLES = ["What can I cook from rice, eggs and tomatoes?", "Explain in three sentences why the sky is blue."];
const NO_ANSWER = "The server does not answer. Start personal-llm serve again, and open the link that it prints.";
let token = "";
let talk = ""; // key of the talk on the page; empty: a new one
let reply = null; // the `AbortController` of the reply that is being written

// small helpers
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function makeButton(text, label, onclick, className = "small") {
  return make("button", { type: "button", textContent: text, ariaLabel: label, title: label, className, onclick });
}

const show = (text) => { $("note").textContent = text; };
const count = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;

// the server
async function ask(path, body, signal) {
  const headers = { Authorization: `Bearer ${token}`, "Content-Type": "application/json" };
  const options = body ? { method: "POST", headers, body: JSON.stringify(body), signal } : { headers };
  const explain = (error) => { throw error.name === "AbortError" ? error : new Error(NO_ANSWER); };
  const response = await fetch(path, options).catch(explain);
  if (response.ok) return response;
  if (response.status === 401) showConnect();
  const content = await response.json().catch(() => ({ error: { message: `error ${response.status}` } }));
  throw new Error(content.error.message);
}

const get = async (path) => (await ask(path)).json();
const post = async (name, body = {}) => (await ask(`/me/${name}`, body)).json();

const attempt = (action) => action().catch((error) => show(error.message)); // shows an error in place of raising it

const onSubmit = (form, action) => { form.onsubmit = (event) => { event.preventDefault(); attempt(action); }; };

async function* readEvents(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) if (part !== "data: [DONE]") yield JSON.parse(part.slice(6));
  }
}

// Markdown: paragraphs, headings, lists, code and bold, made of elements and text nodes only
function addInline(parent, text) {
  for (const part of text.split(/(`[^`]+`|\*\*[^*]+\*\*)/)) {
    if (/^`[^`]+`$/.test(part)) parent.append(make("code", { textContent: part.slice(1, -1) }));
    else if (/^\*\*[^*]+\*\*$/.test(part)) parent.append(make("strong", { textContent: part.slice(2, -2) }));
    else parent.append(part);
  }
}

function makeMarkdown(text) {
  const root = make("div", { className: "reply", dir: "auto" });
  let block = null; // the element that the next line may go on with
  for (const line of text.split("\n")) {
    const item = line.match(/^\s*([-*+]|\d+[.)])\s+(.*)/);
    const heading = line.match(/^#{1,6}\s+(.*)/);
    const isFence = line.trim().startsWith("```");
    if (block?.localName === "pre") {
      if (isFence) block = null;
      else block.append(`${line}\n`);
    } else if (isFence) {
      block = root.appendChild(make("pre"));
    } else if (item) {
      const tag = /\d/.test(item[1]) ? "ol" : "ul";
      if (block?.localName !== tag) block = root.appendChild(make(tag));
      if (tag === "ol" && !block.children.length) block.start = parseInt(item[1], 10);
      addInline(block.appendChild(make("li")), item[2]);
    } else if (heading) {
      addInline(root.appendChild(make("p")).appendChild(make("strong")), heading[1]);
      block = null;
    } else if (!line.trim()) {
      if (block?.localName === "p") block = null; // a list goes on after an empty line
    } else {
      if (block?.localName === "p") block.append(make("br"));
      else block = root.appendChild(make("p"));
      addInline(block, line);
    }
  }
  return root;
}

// a turn
const makeFold = (title, ...children) => make("details", {}, make("summary", { textContent: title }), ...children);

function openEditor(item, turn) {
  item.querySelector("form")?.remove();
  const field = make("textarea", { id: `better-${turn.id}`, rows: 3 });
  const label = make("label", { htmlFor: field.id, textContent: "The reply that you wanted" });
  const save = make("button", { className: "primary", textContent: "Say it like this" });
  const fill = makeButton("Edit the reply", "Edit the reply", () => { field.value = turn.reply; field.focus(); }, "");
  const form = item.appendChild(make("form", {}, label, field));
  const scope = makeScope(turn.scope || "");
  form.append(make("p", { className: "row" }, scope, save, fill, makeButton("Cancel", "Cancel", () => form.remove(), "")));
  onSubmit(form, () => react(turn, "better", field.value, scope.value));
  field.focus();
  form.scrollIntoView({ block: "center" });
}

const SCOPES = { "": "Where it belongs: what I leave alone decides", everywhere: "Everywhere", here: "Only for things like this" };

function makeScope(scope, onchange) {
  const options = Object.entries(SCOPES).map(([value, textContent]) => make("option", { value, textContent, selected: value === scope }));
  return make("select", { ariaLabel: "Where it belongs", onchange }, ...options);
}

const change = (name, body) => attempt(async () => { // whatever is known is loaded again
  await post(name, body);
  show("Noted.");
  await Promise.all([loadTalk(), loadKnown()]);
});

const react = (turn, kind, text = "", scope = "") => attempt(async () => {
  await post("react", { id: turn.id, kind, text, scope });
  show(kind === "better" ? "Noted: from now on I answer like this." : "Noted.");
  await Promise.all([loadTalk(), loadKnown()]);
});

function makeTurn(turn, question) {
  const item = make("li", {}, make("p", { className: "own", dir: "auto", textContent: turn.prompt }));
  if (!turn.reply) return item;
  item.append(makeMarkdown(turn.reply));
  if (turn.first && turn.first !== turn.reply) item.append(makeFold("The first reply", makeMarkdown(turn.first)));
  const lines = turn.read.map((text) => make("li", { textContent: text, dir: "auto" }));
  if (lines.length) item.append(makeFold(`From ${count(lines.length, "earlier message")} of yours`, make("ul", {}, ...lines)));
  const actions = make("p", { className: "row" });
  for (const [kind, icon, label] of [["up", "👍", "A good reply"], ["down", "👎", "A bad reply"]]) {
    const ariaPressed = String(turn.reaction === kind);
    actions.append(Object.assign(makeButton(icon, label, () => react(turn, kind)), { ariaPressed }));
  }
  actions.append(makeButton("✎", "Write the reply that you wanted", () => openEditor(item, turn)));
  const pin = makeButton("📌", "Every reply reads this message of yours", () => change("pin", { id: turn.id }));
  actions.append(Object.assign(pin, { ariaPressed: String(turn.is_pinned) }));
  actions.append(makeButton("✕", "Forget this turn", () => forgetAll({ ids: [turn.id] })));
  if (question) {
    const skip = async () => { await post("skip"); await loadTalk(); };
    item.append(make("p", { className: "question row" }, question, makeButton("Skip", "Skip the question", () => attempt(skip))));
  }
  item.append(actions);
  return item;
}

// a talk
function makeTalk(row) {
  const open = makeButton(row.title, row.title, () => attempt(() => loadTalk(row.talk)));
  if (row.talk === talk) open.ariaCurrent = "true";
  const forget = makeButton("✕", `Forget the talk: ${row.title}`, () => forgetAll({ talk: row.talk }), "small danger");
  return make("li", {}, open, forget);
}

async function loadTalk(key = talk) {
  const data = await get(`/me/talks?talk=${encodeURIComponent(key)}`);
  talk = data.talks.some((row) => row.talk === data.talk) ? data.talk : "";
  drawTalk(data);
}

function makeHabitQuestion({ label, question }) {
  const answers = Object.entries({ everywhere: "Everywhere", here: "Only for things like these", "": "Leave it to me" });
  const buttons = answers.map(([scope, text]) => makeButton(text, text, () => change("habit", { text: label, scope }), ""));
  return make("li", { className: "question row" }, question, ...buttons);
}

function drawTalk({ talks, turns, question, text, habit }) {
  $("talk-list").replaceChildren(...talks.map(makeTalk));
  $("turns").replaceChildren(...turns.map((turn) => makeTurn(turn, turn.id === question && text)));
  if (habit && turns.length) $("turns").append(makeHabitQuestion(habit));
  $("empty").hidden = turns.length > 0;
  $("turns").lastChild?.scrollIntoView({ block: "end" });
}

async function startTalk() {
  reply?.abort();
  talk = "";
  drawTalk({ ...await get("/me/talks"), turns: [] });
  $("line").focus();
}

async function send(text) {
  reply = new AbortController();
  const item = make("li", {}, make("p", { className: "own", dir: "auto", textContent: text }));
  const reason = "reading the talk and what I know about you …" + (learningSince ? " It takes longer while I learn." : "");
  const waiting = item.appendChild(make("p", { className: "soft", textContent: reason }));
  $("empty").hidden = true;
  $("turns").append(item);
  $("send").textContent = "Stop";
  show("");
  let written = "";
  try {
    const body = { model: "personal", stream: true, talk, messages: [{ role: "user", content: text }] };
    for await (const event of readEvents(await ask("/v1/chat/completions", body, reply.signal))) {
      if (event.error) throw new Error(event.error.message);
      written += event.choices[0]?.delta.content || "";
      talk = event.me?.talk || talk;
      if (written) (item.querySelector(".reply") || waiting).replaceWith(makeMarkdown(written));
      item.scrollIntoView({ block: "end" });
    }
  } catch (error) {
    $("line").value ||= text; // nothing was stored
    show(error.name === "AbortError" ? "Stopped; the turn is not kept." : error.message);
  }
  reply = null;
  $("send").textContent = "Send";
  if (token) await attempt(() => loadTalk());
  await attempt(loadStatus);
}

// what is known
function makeKnown(row, ...children) {
  const forget = makeButton("Forget", `Forget: ${row.prompt.slice(0, 80)}`, () => forgetAll({ ids: [row.id] }), "small danger");
  const date = row.time > 1e8 ? new Date(row.time * 1000).toLocaleDateString() : "";
  const source = make("span", { className: "soft", textContent: [row.source, date].filter(Boolean).join(", ") });
  const item = make("li", {}, ...children, make("p", { className: "row" }, source, forget));
  if (row.reply) forget.before(makeButton("✎", `Correct: ${row.prompt.slice(0, 80)}`, () => openEditor(item, row)));
  return item;
}

function makeInstruction({ number, text, time }) {
  const field = make("input", { value: text, ariaLabel: "A standing instruction", required: true });
  const drop = makeButton("✕", `Delete: ${text}`, () => change("react", { kind: "always", number }), "small danger");
  const date = make("span", { className: "soft", textContent: time > 1e8 ? new Date(time * 1000).toLocaleDateString() : "" });
  const form = make("form", { className: "row" }, field, make("button", { textContent: "Change" }), date, drop);
  onSubmit(form, () => change("react", { kind: "always", number, text: field.value }));
  return make("li", {}, form);
}

async function loadKnown() {
  const { instructions, habits, answers, statements } = await get("/me/known");
  const text = (content) => make("p", { textContent: content, dir: "auto" });
  const kind = (row) => (row.origin === "annotated" ? "You would say:" : "You liked:");
  const fill = (id, rows) => $(id).replaceChildren(...(rows.length ? rows : [make("li", { textContent: "Nothing yet." })]));
  const soft = (row) => make("p", { className: "soft", textContent: kind(row) });
  const place = (name, body, scope) => makeScope(scope, (event) => change(name, { ...body, scope: event.target.value }));
  fill("instructions", instructions.map(makeInstruction));
  fill("habits", habits.map((row) => make("li", {}, text(row.text), place("habit", { text: row.label }, row.scope))));
  fill("answers", answers.map((row) => {
    const parts = [text(row.prompt), soft(row), text(row.reply)];
    if (row.origin === "annotated") parts.push(place("scope", { id: row.id }, row.scope));
    return makeKnown(row, ...parts);
  }));
  fill("statements", statements.map((row) => makeKnown({ ...row, reply: "" }, text(row.prompt))));
}

const forgetAll = (request) => attempt(async () => {
  const { lines } = await post("forget", { ...request, dry: true });
  if (!lines.length) return show("Nothing that is stored holds this.");
  $("confirm-lines").replaceChildren(...lines.map((line) => make("li", { textContent: line, dir: "auto" })));
  $("confirm").returnValue = "no";
  $("confirm").showModal();
  await new Promise((done) => { $("confirm").onclose = done; });
  if ($("confirm").returnValue !== "yes") return show("Kept.");
  await post("forget", request);
  show(`Forgotten: ${count(lines.length, "item")}.`);
  return Promise.all([loadTalk(), loadKnown(), loadStatus()]);
});

// learning
let learningSince = 0; // milliseconds, on the clock of this page
async function loadStatus() {
  const status = await get("/me/status");
  learningSince = status.is_learning ? learningSince || Date.now() : 0;
  const minutes = (Date.now() - learningSince) / 60000;
  const left = Math.max(1, Math.round(status.seconds / 60 - minutes));
  const time = status.seconds ? `about ${count(left, "minute")} left` : `for ${count(Math.round(minutes), "minute")} so far`;
  const idle = `Answers of yours that are not learned yet: ${status.unlearned}.`;
  $("learning").textContent = status.is_learning ? `Learning, ${time}. You can go on chatting.` : idle;
  $("model").textContent = status.model.split("/").pop() + (status.is_learning ? ` · learning, ${time}` : "");
  $("progress").hidden = $("stop").hidden = !status.is_learning;
  $("learn").disabled = status.is_learning || !status.unlearned;
  $("undo").hidden = status.is_learning || !status.finetunes;
  if (status.seconds) $("progress").value = Math.min(0.99, minutes * 60 / status.seconds);
  else $("progress").removeAttribute("value");
  if (status.messages.length) show(status.messages.join(" "));
}

for (const name of ["learn", "stop", "undo"]) {
  $(name).onclick = () => attempt(async () => { show((await post(name)).message || ""); await loadStatus(); });
}

// the page
function showSection(name) {
  for (const section of document.querySelectorAll("main > section")) section.hidden = section.id !== name;
  $("open-known").ariaExpanded = String(name === "known");
  $("open-known").textContent = name === "known" ? "Back to the chat" : "What I know about you";
}

function showConnect() {
  token = "";
  sessionStorage.removeItem(TOKEN);
  showSection("connect");
}

const connect = (given, code) => attempt(async () => {
  token = code ? (await (await ask("/connect", { text: code })).json()).token : given; // a code works once
  await loadTalk();
  sessionStorage.setItem(TOKEN, token);
  showSection("chat");
  await loadStatus();
  $("line").focus();
});

$("open-known").onclick = () => attempt(async () => {
  if (!token) return;
  if (!$("known").hidden) return showSection("chat");
  await loadKnown();
  showSection("known");
  $("known-title").focus();
});
$("new").onclick = () => attempt(startTalk);
$("forget-all").onclick = () => forgetAll({ everything: true });
onSubmit($("forget-form"), () => forgetAll({ text: $("words").value }));
onSubmit($("always-form"), () => change("react", { kind: "always", text: $("always").value }));
onSubmit($("connect-form"), () => connect($("token").value.trim()));
onSubmit($("composer"), async () => {
  if (reply) return reply.abort();
  const text = $("line").value.trim();
  $("line").value = "";
  return text && send(text);
});
$("line").onkeydown = (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || reply) return;
  event.preventDefault();
  $("composer").requestSubmit();
};
addEventListener("keydown", (event) => { if (event.key === "Escape") reply?.abort(); });
for (const text of EXAMPLES) $("examples").append(makeButton(text, text, () => send(text)));
setInterval(() => { if (token && !document.hidden) attempt(loadStatus); }, 5000);
$("talks").open = matchMedia("(min-width: 64rem)").matches;

const code = new URLSearchParams(location.hash.slice(1)).get("code");
if (code) history.replaceState(null, "", location.pathname);
if (sessionStorage.getItem(TOKEN) || code) connect(sessionStorage.getItem(TOKEN), code);
else showConnect();

const $ = (id) => document.getElementById(id);
const TOKEN_KEY = "personal_llm.token", SETTINGS_KEY = "personal_llm.settings", TOY_KEY = "personal_llm.toy";
const state = { token: "", view: "chat", reply: null, status: null, seenNotices: 0, turns: [], working: false };
const NO_ANSWER = "The server does not answer. Start personal-llm serve again with the same folder, and open the link that it prints.";
const WRONG_TOKEN = "The token is wrong. Without PERSONAL_LLM_TOKEN the server makes a new token at each start. Open the link "
  + "that personal-llm serve printed last, or paste the token from its end.";

// small helpers

function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  const { data, ...rest } = properties;
  for (const [name, value] of Object.entries(rest)) {
    if (name.includes("-") || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

function button(text, action, kind = "small") {
  const element = make("button", { type: "button", className: kind, textContent: text });
  element.addEventListener("click", action);
  return element;
}

const count = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;

function announce(text) { $("announcement").textContent = text; }

function tell(text) {
  if (!$("notices-bar").hidden && $("notices").lastChild?.textContent === text) return;
  $("notices-bar").hidden = false;
  $("notices").append(make("li", { textContent: text }));
  while ($("notices").children.length > 3) $("notices").firstChild.remove();
}

function withdraw(text) {
  for (const item of [...$("notices").children]) if (item.textContent === text) item.remove();
  $("notices-bar").hidden = !$("notices").children.length;
}

async function confirmLoss(text, verb) {
  const dialog = $("confirm");
  $("confirm-text").textContent = text;
  $("confirm-yes").textContent = verb;
  dialog.returnValue = "no";
  dialog.showModal();
  await new Promise((done) => dialog.addEventListener("close", done, { once: true }));
  return dialog.returnValue === "yes";
}

// the server

async function send(method, path, body, signal) {
  const headers = { Authorization: `Bearer ${state.token}` };
  if (body !== undefined && !(body instanceof Blob)) headers["Content-Type"] = "application/json";
  const content = body === undefined || body instanceof Blob ? body : JSON.stringify(body);
  const response = await reach(fetch(path, { method, headers, body: content, signal }));
  withdraw(NO_ANSWER);
  if (response.ok) return response;
  let message = `The server answered with error ${response.status}. Close other pages of it, and try again in a minute.`;
  try { message = (await response.json()).error.message; } catch { /* no JSON */ }
  if (response.status === 401) showConnect(message = WRONG_TOKEN);
  throw new Error(message);
}

// a browser has words of its own for a server that has gone
const reach = (promise) => promise.catch((error) => { throw error.name === "AbortError" ? error : new Error(NO_ANSWER); });
const get = async (path) => reach((await send("GET", path)).json());

async function post(path, body = {}) {
  const timer = setTimeout(() => { state.working = true; showState(); }, 500);
  try { return await reach((await send("POST", path, body)).json()); } finally {
    clearTimeout(timer);
    state.working = false;
    showState();
  }
}

async function attempt(action) {
  try { return await action(); } catch (error) {
    if (state.token) tell(error.message);
    announce(error.message);
    return null;
  }
}

async function* readEvents(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reach(reader.read());
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) yield JSON.parse(part.slice(6));
  }
}

// connection

function showConnect(reason) {
  state.token = "";
  sessionStorage.removeItem(TOKEN_KEY);
  for (const section of document.querySelectorAll("main > section")) section.hidden = section.id !== "connect";
  if (reason) $("connect-reason").textContent = reason;
  $("state").textContent = "not connected";
  $("token-field").focus();
}

async function connect(token) {
  state.token = token;
  const status = await get("/personal/status");
  sessionStorage.setItem(TOKEN_KEY, token);
  state.seenNotices = status.num_notices;
  showStatus(status);
  showView("chat");
  await loadConversation();
}

$("connect-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  await attempt(() => connect($("token-field").value.trim()));
});

// views

const LOADERS = { memory: () => loadMemory(), you: () => loadStyle(), learning: () => loadLearning(), settings: showSettings };

function showView(name) {
  state.view = name;
  for (const section of document.querySelectorAll("main > section")) section.hidden = section.id !== name;
  for (const tab of document.querySelectorAll("nav button")) {
    if (tab.dataset.view === name) tab.setAttribute("aria-current", "page");
    else tab.removeAttribute("aria-current");
  }
  if (name === "chat") scrollDown();
  else $("main").scrollTop = 0;
}

for (const tab of document.querySelectorAll("nav button")) {
  tab.addEventListener("click", async () => {
    if (!state.token) return;
    showView(tab.dataset.view);
    if (LOADERS[tab.dataset.view]) await attempt(LOADERS[tab.dataset.view]);
  });
}

// status

function showState() {
  if (!state.status || !state.token) return;
  const { model, is_learning, new_answers } = state.status;
  const learning = is_learning ? "learning in the background" : count(new_answers, "new answer");
  $("state").textContent = `${model} · ${state.working ? "working …" : learning}`;
}

function showStatus(status) {
  const before = state.status;
  state.status = status;
  showState();
  $("toy").hidden = !status.is_toy || localStorage.getItem(TOY_KEY) === "known";
  for (const text of status.notices.slice(status.notices.length - (status.num_notices - state.seenNotices))) tell(text);
  state.seenNotices = status.num_notices;
  const changed = before && (before.question !== status.question || before.rounds !== status.rounds
    || before.is_learning !== status.is_learning);
  if (changed && !state.reply) attempt(state.view === "learning" ? loadLearning : loadConversation);
}

async function watchStatus() {
  for (;;) {
    await new Promise((done) => setTimeout(done, 2000));
    if (!state.token || document.hidden) continue;
    try { showStatus(await get("/personal/status")); }
    catch { if (state.token) $("state").textContent = "the server does not answer"; }
  }
}

// chat

function scrollDown() { $("main").scrollTop = $("main").scrollHeight; }

function showTurn(turn, isLast) {
  const item = make("li");
  item.append(make("p", { className: "message own", dir: "auto", textContent: turn.prompt }));
  item.append(make("p", { className: turn.correction ? "message reply old" : "message reply", dir: "auto", textContent: turn.response }));
  if (turn.correction) {
    item.append(make("p", { className: "note", textContent: "Your version:" }));
    item.append(make("p", { className: "message reply", dir: "auto", textContent: turn.correction }));
  }
  const about = turn.prompt.slice(0, 60);
  const tool = (text, action) => {
    const element = button(text, action);
    element.setAttribute("aria-label", `${text}: ${about}`);
    return element;
  };
  const thumb = (kind, text) => {
    const element = tool(text, () => turn.thumb === kind || giveFeedback(turn.id, { kind }, text));
    element.setAttribute("aria-pressed", String(turn.thumb === kind));
    return element;
  };
  const tools = make("p", { className: "row" }, thumb("thumb_up", "Good reply"), thumb("thumb_down", "Bad reply"),
    tool("Edit", () => editReply(item, turn)));
  if (isLast) {
    tools.append(tool("Try again", () => streamReply("/personal/again", {})),
      tool("Write a second reply", () => streamReply("/personal/again", { keeps_both: true })), tool("Delete this turn", undo));
  }
  item.append(tools);
  return item;
}

function showChoice(choice) {
  const item = $("turns").lastChild;
  if (!choice || !item || state.turns[state.turns.length - 1].id !== choice.id) return;
  const pick = (number) => attempt(async () => {
    await post("/personal/choose", { number });
    announce(`You chose reply ${number}`);
    await loadConversation();
  });
  const offers = choice.replies.map((text, place) => make("div", { className: "offer" },
    make("p", { className: "message reply", dir: "auto", textContent: text }),
    button(`Reply ${place + 1} is better`, () => pick(place + 1))));
  item.querySelectorAll(".reply, .row").forEach((part) => part.remove());
  item.append(make("div", { className: "offers", role: "group", "aria-label": "Two replies: which one is better?" }, ...offers),
    make("p", { className: "row" }, button("Neither", skip)));
}

function showMemories(memories) {
  const item = $("turns").lastChild;
  if (!memories.text || !item) return;
  const rows = memories.dialogues.map((d) => make("li", {}, make("p", { dir: "auto", textContent: `${d.prompt} → ${d.response}` }),
    button("Forget", () => forgetDialogues({ ids: [d.id] }, `Forget “${d.prompt.slice(0, 80)}”?`), "small danger")));
  item.append(make("details", { className: "memories" }, make("summary", { textContent: memories.text }), make("ul", {}, ...rows)));
}

function editReply(item, turn) {
  if (item.querySelector("form")) return;
  const field = make("textarea", { rows: 3, value: turn.correction || turn.response, id: `edit-${turn.id}` });
  const label = make("label", { htmlFor: field.id, textContent: "The reply that you would have liked" });
  const form = make("form", {}, label, field, make("p", { className: "row" },
    make("button", { className: "primary small", textContent: "Save" }), button("Cancel", () => form.remove())));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (field.value.trim()) giveFeedback(turn.id, { kind: "edit", better: field.value }, "Your version is stored");
  });
  item.append(form);
  field.focus();
}

async function giveFeedback(id, fields, done) {
  const result = await attempt(() => post("/personal/feedback", { id, ...fields }));
  await attempt(loadConversation);
  if (result) announce(done);
}

async function skip() {
  await attempt(() => post("/personal/skip"));
  await attempt(loadConversation);
}

async function undo() {
  const undone = await attempt(() => post("/personal/undo"));
  await attempt(loadConversation);
  if (undone) $("line").value = undone.prompt;
}

function showTurns() {
  $("turns").replaceChildren(...state.turns.map((turn, place) => showTurn(turn, place === state.turns.length - 1)));
}

async function loadConversation() {
  const { turns, question, choice, memories } = await get("/personal/conversation");
  state.turns = turns;
  showTurns();
  $("empty").hidden = turns.length > 0;
  showQuestion(question);
  showChoice(choice);
  showMemories(memories);
  if (state.view === "chat") scrollDown();
}

function showQuestion(question) {
  const box = $("question"), isNew = question && box.dataset.id !== question.id;
  box.hidden = !question;
  if (!question) { delete box.dataset.id; return; }
  const isOwn = state.turns.some((turn) => turn.id === question.id);
  const about = isOwn ? "" : ` (In another program you wrote “${question.prompt}”, and the model replied “${question.response}”.)`;
  if (isNew) {
    $("question-text").textContent = question.text + about;
    $("better").value = "";
    announce(question.text);
  }
  box.dataset.id = question.id;
}

$("question-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const better = $("better").value;
  if (better.trim()) giveFeedback($("question").dataset.id, { kind: "better", better }, "Your version is stored");
});
$("question-fine").addEventListener("click", () => giveFeedback($("question").dataset.id, {}, "Thank you"));
$("question-skip").addEventListener("click", skip);

async function streamReply(path, body) {
  if (state.reply) return;
  state.reply = new AbortController();
  $("send").textContent = "Stop";
  $("question").hidden = true;
  const parts = body.keeps_both ? ".row, form" : ".reply, .note, .row, form";
  if (path.endsWith("again")) $("turns").lastChild?.querySelectorAll(parts).forEach((part) => part.remove());
  else $("turns").append(make("li", {}, make("p", { className: "message own", dir: "auto", textContent: body.text })));
  $("empty").hidden = true;
  const shown = make("p", { className: "message reply", dir: "auto", textContent: "…" });
  $("turns").lastChild.append(shown);
  scrollDown();
  let text = "";
  try {
    for await (const item of readEvents(await send("POST", path, body, state.reply.signal))) {
      if (item.error) throw new Error(item.error.message);
      if (item.piece) {
        text += item.piece;
        shown.textContent = text;
        scrollDown();
      }
    }
    announce(text);
  } catch (error) {
    tell(error.name === "AbortError" ? "stopped; this reply is not kept" : error.message);
    if (body.text && !$("line").value) $("line").value = body.text;
    showTurns();
  }
  state.reply = null;
  $("send").textContent = "Send";
  if (state.token) await attempt(loadConversation);
}

function submitLine() {
  if (state.reply) return state.reply.abort();
  const text = $("line").value.trim();
  if (!text) return;
  $("line").value = "";
  streamReply("/personal/chat", { text });
}

$("composer").addEventListener("submit", (event) => { event.preventDefault(); submitLine(); });
$("line").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || !$("enter").checked) return;
  event.preventDefault();
  if (!state.reply) submitLine();
});
$("notices-close").addEventListener("click", () => {
  $("notices").replaceChildren();
  $("notices-bar").hidden = true;
});
$("toy-close").addEventListener("click", () => {
  localStorage.setItem(TOY_KEY, "known");
  $("toy").hidden = true;
  $("line").focus();
});

// memory

const SCORE_NAMES = { eoe: "entropy of embedding", dss: "domain-specific score", idd: "in-domain dissimilarity" };

function showDialogue(row) {
  const scores = Object.entries(row.scores).map(([name, value]) => `${SCORE_NAMES[name]} ${value}`);
  const reason = row.reason === "a bin was free" ? "there was free space" : row.reason;
  const why = make("details", {}, make("summary", { textContent: "Why is it kept?" }),
    make("p", { className: "note", textContent: [reason, scores.length && `scores: ${scores.join(", ")}`].filter(Boolean).join(" · ") }));
  const forget = button("Forget", () => forgetDialogues({ ids: [row.id] }, `Forget “${row.prompt.slice(0, 80)}”?`), "small danger");
  forget.setAttribute("aria-label", `Forget: ${row.prompt.slice(0, 80)}`);
  return make("li", {},
    make("p", {}, make("strong", { textContent: row.prompt, dir: "auto" })),
    make("p", { textContent: row.response, dir: "auto" }),
    make("p", { className: "row" }, make("span", { className: "label", textContent: row.answer }), forget), why);
}

let searched = ""; // the words of the last search, which the button to forget names
async function loadMemory() {
  const q = searched = $("search-field").value;
  const memory = await get(`/personal/memory?q=${encodeURIComponent(q)}`);
  $("memory-count").textContent = `The memory holds ${memory.kept} of at most ${count(memory.capacity, "dialogue")}. The policy has read ${memory.seen}.`;
  $("dialogues").replaceChildren(...memory.dialogues.map(showDialogue));
  if (!memory.dialogues.length) $("dialogues").append(make("li", { textContent: q ? "No dialogue contains this text." : "Nothing is stored yet." }));
  $("forget-found").hidden = !q.trim();
  $("forget-found").textContent = `Forget all with “${q}”`;
}

async function forgetDialogues(request, question) {
  if (!await confirmLoss(`${question} This also deletes every adapter that learned from it, and all later adapters.`, "Forget")) return;
  const before = state.status.is_learning ? "Stopping the fine-tune, then forgetting …" : "Forgetting …";
  $("forgotten").replaceChildren(make("p", { textContent: before }));
  const report = await attempt(() => post("/personal/forget", request));
  await attempt(loadMemory);
  if (!report) return $("forgotten").replaceChildren();
  const counts = `Forgotten: ${count(report.dialogues, "dialogue")}, ${count(report.turns, "turn")} of the chat, ${count(report.adapters, "adapter")}.`;
  const rest = report.unreachable.map((text) => make("li", { textContent: text }));
  $("forgotten").replaceChildren(make("p", { textContent: counts }),
    ...(rest.length ? [make("p", { textContent: "This program cannot reach:" }), make("ul", {}, ...rest)] : []));
  await attempt(loadConversation);
}

$("search").addEventListener("submit", (event) => { event.preventDefault(); attempt(loadMemory); });
$("forget-found").addEventListener("click", () => forgetDialogues({ text: searched }, `Forget all dialogues with “${searched}”?`));
$("forget-all").addEventListener("click", () => forgetDialogues({ everything: true }, "Forget everything?"));

$("export").addEventListener("click", () => attempt(async () => {
  const { dialogues, feedback } = await get("/personal/export");
  for (const [name, rows] of [["memory", dialogues], ["feedback", feedback]]) {
    if (!rows.length) continue;
    const lines = rows.map((row) => JSON.stringify(row) + "\n");
    const link = make("a", { href: URL.createObjectURL(new Blob(lines)), download: `${name}.jsonl` });
    link.click();
    URL.revokeObjectURL(link.href);
  }
}));

async function importFile(file) {
  $("import-result").textContent = `Reading ${file.name} …`;
  const query = new URLSearchParams({ name: file.name, user: $("sender").value.trim() });
  const result = await attempt(() => post(`/personal/import?${query}`, file));
  $("import-result").textContent = result
    ? `Read ${count(result.dialogues, "dialogue")}; ${result.kept} entered the memory.` : "The file was not imported.";
  await attempt(loadMemory);
}

$("file").addEventListener("change", () => { if ($("file").files[0]) importFile($("file").files[0]); });
for (const name of ["dragenter", "dragover"]) {
  $("drop").addEventListener(name, (event) => { event.preventDefault(); $("drop").classList.add("over"); });
}
$("drop").addEventListener("dragleave", () => $("drop").classList.remove("over"));
$("drop").addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  if (event.dataTransfer.files[0]) importFile(event.dataTransfer.files[0]);
});

// you

async function loadStyle() {
  $("style").replaceChildren(make("li", { textContent: "reading your answers …" }));
  const failed = (error) => ({ lines: [], missing: error.message, start: null });
  const { lines, missing, start } = await get("/personal/style").catch(failed);
  const shown = lines.length ? lines : [missing];
  $("style").replaceChildren(...shown.map((text) => make("li", { textContent: text, dir: "auto" })));
  const names = start ? Object.keys(start.weights || {}).join(", ") || "the base model" : "";
  $("start").textContent = start ? `Your model started from ${names}: ${start.reason}.` : "Your model started from the base model.";
}

// learning

function drawCurve(rounds) {
  const svg = $("plot"), space = "http://www.w3.org/2000/svg";
  const draw = (tag, attributes, text = "") => {
    const part = document.createElementNS(space, tag);
    for (const [name, value] of Object.entries(attributes)) part.setAttribute(name, value);
    part.textContent = text;
    svg.append(part);
  };
  svg.replaceChildren();
  const top = Math.max(...rounds.flatMap((round) => [round.start_loss, round.best_loss])) * 1.1;
  const x = (place) => 60 + (place + 0.5) * 560 / rounds.length, y = (loss) => 200 - loss / top * 180;
  for (const share of [0, 0.5, 1]) {
    const value = top * share / 1.1;
    draw("line", { class: "axis", x1: 60, x2: 620, y1: y(value), y2: y(value) });
    draw("text", { x: 52, y: y(value) + 5, "text-anchor": "end" }, value.toFixed(1));
  }
  rounds.forEach((round, place) => {
    draw("line", { class: "link", x1: x(place), x2: x(place), y1: y(round.start_loss), y2: y(round.best_loss) });
    draw("circle", { class: "before", cx: x(place), cy: y(round.start_loss), r: 6 });
    draw("rect", { class: "after", x: x(place) - 6, y: y(round.best_loss) - 6, width: 12, height: 12 });
    if (rounds.length <= 20) draw("text", { x: x(place), y: 224, "text-anchor": "middle" }, String(place + 1));
  });
  const last = rounds[rounds.length - 1];
  const result = `Last fine-tune: ${last.start_loss.toFixed(2)} before, ${last.best_loss.toFixed(2)} after.`;
  svg.setAttribute("aria-label", `Loss before (circles) and after (squares) ${count(rounds.length, "fine-tune")}. ${result}`);
  $("curve").querySelector("figcaption").textContent = `Loss (nats a token; lower is better) before (circle) and after (square) each fine-tune. ${result}`;
}

let outcome = ""; // of an undone fine-tune, which stays on screen while the view loads again
async function loadLearning() {
  const { rounds } = await get("/personal/learning");
  const { new_answers: fresh, is_learning: learning, learns_at: limit } = state.status;
  const start = limit ? `At ${limit} new answers a fine-tune starts by itself.` : "A fine-tune starts when you press the button.";
  $("learning-state").textContent = learning ? "A fine-tune is running. You can go on chatting."
    : `${outcome}New answers since the last fine-tune: ${fresh}. ${start} Fine-tunes so far: ${rounds.length}.`;
  $("learn").disabled = learning;
  $("compare").disabled = $("unlearn").disabled = !rounds.length;
  $("curve").hidden = $("rounds").hidden = !rounds.length;
  if (!rounds.length) return;
  drawCurve(rounds);
  $("rounds").tBodies[0].replaceChildren(...rounds.map((round, place) => {
    const source = round.num_validation_dialogues ? count(round.num_validation_dialogues, "validation dialogue") : "training dialogues";
    const cells = [round.kept, round.start_loss.toFixed(2), round.best_loss.toFixed(2), source, round.seconds.toFixed(0)];
    return make("tr", {}, make("th", { scope: "row", textContent: place + 1 }), ...cells.map((text) => make("td", { textContent: text })));
  }));
}

$("learn").addEventListener("click", () => attempt(async () => {
  outcome = "";
  const { message } = await post("/personal/learn").catch((error) => ({ message: error.message }));
  $("learning-state").textContent = message;
  announce(message);
  showStatus(await get("/personal/status"));
}));

$("unlearn").addEventListener("click", async () => {
  const question = "Undo the last fine-tune? Its adapter is deleted. Your answers stay, and you can learn from them again.";
  if (!await confirmLoss(question, "Undo")) return;
  const result = await attempt(() => post("/personal/unlearn"));
  outcome = result ? `${result.message}. ` : "";
  $("examples").replaceChildren();
  await attempt(async () => showStatus(await get("/personal/status")));
  await attempt(loadLearning);
  if (result) announce(result.message);
});

$("compare").addEventListener("click", () => attempt(async () => {
  $("examples").replaceChildren(make("p", { textContent: "writing replies …" }));
  const { examples } = await get("/personal/examples");
  const line = (name, text) => make("p", { dir: "auto" }, make("strong", { textContent: `${name}: ` }), text);
  const replies = ({ before, after }) => before === after
    ? [line("Before and after", before), make("p", { className: "note", textContent: "The fine-tune has not changed this reply." })]
    : [line("Before", before), line("After", after)];
  $("examples").replaceChildren(...examples.map((one) => make("div", { className: "example" }, line("You", one.prompt),
    ...replies(one), ...(one.correction ? [line("Your version", one.correction)] : []))));
  if (!examples.length) $("examples").replaceChildren(make("p", { textContent: "The memory holds no answered dialogue to compare." }));
}));

// settings

function applySettings(settings) {
  document.documentElement.dataset.theme = settings.theme || "";
  document.documentElement.dataset.size = settings.size || "";
  $("theme").value = settings.theme || "";
  $("size").value = settings.size || "";
  $("enter").checked = settings.enter !== false;
}

function showSettings() {
  $("base-url").textContent = `${location.origin}/v1`;
  $("token-text").textContent = "";
  $("model-line").textContent = `Model: ${state.status.model}; policy of the memory: ${state.status.policy}; at most ${count(state.status.questions_left, "more question")}.`;
}

for (const id of ["theme", "size", "enter"]) {
  $(id).addEventListener("change", () => {
    const settings = { theme: $("theme").value, size: $("size").value, enter: $("enter").checked };
    localStorage.setItem(SETTINGS_KEY, JSON.stringify(settings));
    applySettings(settings);
  });
}
$("show-token").addEventListener("click", () => { $("token-text").textContent = state.token; });

// start

function start() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) history.replaceState(null, "", location.pathname);
  const token = given || sessionStorage.getItem(TOKEN_KEY);
  if (token) connect(token).catch((error) => showConnect(error.message));
  else showConnect();
}

applySettings(JSON.parse(localStorage.getItem(SETTINGS_KEY) || "{}"));
window.addEventListener("hashchange", () => { if (location.hash.startsWith("#token=")) start(); });
start();
watchStatus();

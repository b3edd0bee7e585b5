const $ = (id) => document.getElementById(id);
const TOKEN_KEY = "personal_llm.token", SETTINGS_KEY = "personal_llm.settings", TOY_KEY = "personal_llm.toy";
const DRAFTS_KEY = "personal_llm.drafts", CONVERSATION_KEY = "personal_llm.conversation";
const NEW = "new"; // the key of a conversation without a turn
const state = { token: "", view: "chat", reply: null, status: null, seenNotices: 0, working: false,
  opening: null, key: null, turns: [], numEarlier: 0, sticks: true, isStale: false,
  mark: null }; // of the status that the page shows
const NO_ANSWER = "The server does not answer. Start personal-llm serve again with the same folder, and open the link that it prints.";
const NO_WORDS = "Write what you would have liked first.", STILL_WRITING = "Stop the reply first, or wait for its end.";
const WRONG_TOKEN = "The token is wrong, perhaps because the server was started with --new-token. Open the link "
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

// what is drawn between press and release moves the button away, and its click is lost: so it waits
let pressTimer = 0;
const waiting = [];
function whenReleased(action) {
  if (pressTimer) waiting.push(action);
  else action();
}
function endPress() {
  clearTimeout(pressTimer);
  pressTimer = 0;
  for (const action of waiting.splice(0)) action();
}
addEventListener("pointerdown", () => {
  clearTimeout(pressTimer);
  pressTimer = setTimeout(endPress, 2000);
}, true);
for (const name of ["pointerup", "pointercancel"]) addEventListener(name, () => setTimeout(endPress, 0), true);

const tell = (text) => whenReleased(() => {
  if (!$("notices-bar").hidden && $("notices").lastChild?.textContent === text) return;
  $("notices-bar").hidden = false;
  $("notices").append(make("li", { textContent: text }));
  while ($("notices").children.length > 3) $("notices").firstChild.remove();
});

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

// drafts: what is typed stays in this tab until it is sent, also when the page is loaded again

const drafts = JSON.parse(sessionStorage.getItem(DRAFTS_KEY) || "{}");

function setDraft(name, text) {
  if (text) drafts[name] = text;
  else delete drafts[name];
  sessionStorage.setItem(DRAFTS_KEY, JSON.stringify(drafts));
}

function dropDrafts({ text, ids, everything, conversation }) {
  const isGone = (name) => everything || (ids || []).some((id) => name.endsWith(`:${id}`)) || name === `line:${conversation}`
    || (text && drafts[name].toLowerCase().includes(text.trim().toLowerCase()));
  for (const name of Object.keys(drafts).filter(isGone)) {
    setDraft(name, "");
    $(name)?.closest("form").remove(); // an editor
    if (name === `better:${questionId()}`) $("better").value = "";
  }
  $("line").value = drafts[`line:${state.key}`] || "";
}

const tabs = new BroadcastChannel("personal_llm"); // of this browser, and this server
tabs.addEventListener("message", ({ data }) => dropDrafts(data));
function dropAllDrafts(request) {
  dropDrafts(request);
  tabs.postMessage(request);
}

async function copyText(text) {
  try { await navigator.clipboard.writeText(text); } catch { // only pages of this computer have a clipboard
    const field = make("textarea", { value: text, className: "hidden" });
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
  announce("Copied");
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
  try { message = (await response.json()).detail; } catch { /* no JSON */ }
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
  if (reason === WRONG_TOKEN) sessionStorage.removeItem(TOKEN_KEY); // any other error may be one of a page that is loaded again
  for (const section of document.querySelectorAll("main > section")) section.hidden = section.id !== "connect";
  if (reason) $("connect-reason").textContent = reason;
  $("state").textContent = "not connected";
  $("token-field").focus();
}

async function connect(token) {
  state.token = token;
  sessionStorage.setItem(TOKEN_KEY, token); // first, so that the page may be loaded again at once
  const status = await get("/personal/status");
  state.seenNotices = status.num_notices;
  state.mark = status.mark;
  showStatus(status);
  const opened = openStored();
  state.opening = opened.catch(() => null); // what is sent meanwhile waits for it
  showView("chat");
  await opened;
}

async function openStored() {
  const stored = sessionStorage.getItem(CONVERSATION_KEY), typed = $("line").value;
  await loadConversations();
  const isKnown = stored === NEW || [...$("conversations").querySelectorAll("button")].some((one) => one.dataset.key === stored);
  await openConversation(isKnown ? stored : null, null, typed);
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
  if (name === "chat") {
    scrollDown();
    $("line").focus();
  } else $("main").scrollTop = 0;
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
  const left = state.status.learns_at === null ? "" : `, learns at ${state.status.learns_at}`;
  const learning = is_learning ? "learning from your answers, you can go on" : count(new_answers, "new answer") + left;
  $("state").textContent = `${model} · ${state.working ? "working …" : learning}`;
}

function showStatus(status) {
  state.status = status;
  showState();
  $("toy").hidden = !status.is_toy || localStorage.getItem(TOY_KEY) === "known";
  for (const text of status.notices.slice(status.notices.length - (status.num_notices - state.seenNotices))) tell(text);
  state.seenNotices = status.num_notices;
}

// what other tabs, programs and fine-tunes change; nothing that is being typed is drawn anew

let refreshing = null;
async function refresh() {
  if (state.reply || refreshing) { state.isStale = true; return; }
  refreshing = (async () => {
    do {
      state.isStale = false;
      const status = await get("/personal/status");
      showStatus(status);
      state.mark = status.mark;
      await loadConversation();
      await loadConversations();
      if (state.view === "learning") await loadLearning();
    } while (state.isStale && !state.reply && state.token);
  })();
  try { await attempt(() => refreshing); } finally { refreshing = null; }
}

async function watchStatus() {
  for (;;) {
    await new Promise((done) => setTimeout(done, 1000));
    if (!state.token || document.hidden) continue;
    try {
      const status = await get("/personal/status");
      showStatus(status);
      if (status.mark !== state.mark) await refresh();
    }
    catch { if (state.token) $("state").textContent = "the server does not answer"; }
  }
}

// chat

function scrollDown() {
  state.sticks = true;
  $("main").scrollTop = $("main").scrollHeight;
}

function follow() { if (state.sticks && state.view === "chat" && !pressTimer) scrollDown(); }

function noteScroll() {
  const main = $("main");
  if (state.view === "chat") state.sticks = main.scrollHeight - main.scrollTop - main.clientHeight < 60;
}

$("main").addEventListener("scroll", () => {
  const main = $("main");
  noteScroll();
  if (main.scrollTop < 200 && state.view === "chat") loadEarlier();
});

// what gets the focus is never under the message line, nor under the conversations that stay at the top of a phone
const covers = new ResizeObserver(() => {
  const height = (id) => (getComputedStyle($(id)).position === "sticky" ? $(id).offsetHeight + 8 : 8);
  $("main").style.scrollPadding = `${height("sidebar")}px 0 ${height("composer")}px`;
});
for (const id of ["sidebar", "composer"]) covers.observe($(id));

const TAGS = new Set("p h3 span em strong s code pre hr br ul ol li blockquote table thead tbody tr th td a".split(" "));

function showTree(nodes) {
  return nodes.flatMap((node) => {
    if (typeof node === "string") return [node];
    const [tag, children, address] = node;
    const element = make(TAGS.has(tag) ? tag : "span", {}, ...showTree(children));
    if (tag === "pre") return [element, button("Copy code", () => copyText(element.textContent), "small copy")];
    if (tag === "a" && address) Object.assign(element, { href: address, title: address, target: "_blank", rel: "noopener noreferrer" });
    if (tag === "table") return [make("div", { className: "wide", tabIndex: 0, role: "region", "aria-label": "Table" }, element)];
    return [element];
  });
}

function showTurn(turn, isLast) {
  const parts = [make("p", { className: "message own", dir: "auto", textContent: turn.prompt })];
  if (turn.correction) {
    parts.push(make("p", { className: "message reply old", dir: "auto", textContent: turn.response }),
      make("p", { className: "note", textContent: "Your version:" }));
  }
  parts.push(make("div", { className: "message reply rich", dir: "auto" }, ...showTree(turn.tree)));
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
    tool("Edit", () => openEditor(turn, "edit")), tool("Copy", () => copyText(turn.correction || turn.response)));
  if (isLast) {
    const again = (fields) => streamReply("/personal/again", { ...fields, conversation: state.key });
    tools.append(tool("Try again", () => again({})), tool("Write a second reply", () => again({ keeps_both: true })),
      tool("Edit my message", () => openEditor(turn, "message")), tool("Delete this turn", undo));
  }
  return [...parts, tools];
}

function showChoice(parts, choice) {
  const pick = (number) => attempt(async () => {
    await post("/personal/choose", { number });
    announce(`You chose reply ${number}`);
    await loadConversation();
  });
  const offers = choice.replies.map((text, place) => make("div", { className: "offer" },
    make("p", { className: "message reply", dir: "auto", textContent: text }),
    button(`Reply ${place + 1} is better`, () => pick(place + 1))));
  return [parts[0], make("div", { className: "offers", role: "group", "aria-label": "Two replies: which one is better?" }, ...offers),
    make("p", { className: "row" }, button("Neither", skip))];
}

function showMemories(memories) {
  const rows = memories.dialogues.map((d) => make("li", {}, make("p", { dir: "auto", textContent: `${d.prompt} → ${d.response}` }),
    button("Forget", () => forgetDialogues({ ids: [d.id] }, `Forget “${d.prompt.slice(0, 80)}”?`), "small danger")));
  return make("details", { className: "memories" }, make("summary", { textContent: memories.text }), make("ul", {}, ...rows));
}

// an editor belongs to its turn, and stays when the turn above it is drawn anew

const EDITORS = {
  edit: ["The reply that you would have liked", "Save", (turn) => turn.correction || turn.response,
    (turn, text) => giveFeedback(turn.id, { kind: "edit", better: text }, "Your version is stored")],
  message: ["Your message; a new reply takes the place of this turn", "Send again", (turn) => turn.prompt,
    (turn, text) => streamReply("/personal/chat", { text, replaces: turn.id, conversation: state.key })],
};

function findTurn(id) { return [...$("turns").children].find((item) => item.turnId === id); }

function openEditor(turn, kind, hasFocus = true) {
  const item = findTurn(turn.id), name = `${kind}:${turn.id}`, [words, verb, getText, submit] = EDITORS[kind];
  if (item.querySelector(`form[data-kind=${kind}]`)) return;
  const field = make("textarea", { rows: 3, value: drafts[name] ?? getText(turn), id: name });
  const close = () => {
    form.remove();
    [...item.querySelectorAll("button")].find((one) => one.textContent === (kind === "edit" ? "Edit" : "Edit my message"))?.focus();
  };
  const cancel = button("Cancel", () => { setDraft(name, ""); close(); });
  const form = make("form", {}, make("label", { htmlFor: name, textContent: words }), field,
    make("p", { className: "row" }, make("button", { className: "primary small", textContent: verb }), cancel));
  form.dataset.kind = kind;
  field.addEventListener("input", () => setDraft(name, field.value));
  form.addEventListener("keydown", (event) => { if (event.key === "Escape") close(); }); // the draft stays
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (!field.value.trim()) return tell(NO_WORDS);
    if (kind === "message" && state.reply) return tell(STILL_WRITING);
    if (!await submit(turn, field.value)) return;
    setDraft(name, "");
    form.remove();
  });
  item.append(form);
  if (hasFocus) field.focus();
}

async function giveFeedback(id, fields, done) { // whether it is stored
  const result = await attempt(() => post("/personal/feedback", { id, ...fields }));
  if (result) announce(done);
  await attempt(loadConversation);
  return Boolean(result);
}

async function skip() {
  await attempt(() => post("/personal/skip"));
  await attempt(loadConversation);
}

async function undo() {
  const undone = await attempt(() => post("/personal/undo", { conversation: state.key }));
  await attempt(loadConversation);
  if (undone && !$("line").value) $("line").value = undone.prompt;
  await attempt(loadConversations);
}

// draws only the turns that differ from what is shown, and keeps editors and focus
function showTurns() {
  const list = $("turns"), last = state.turns.length - 1, focused = document.activeElement;
  const items = new Map([...list.children].filter((item) => item.turnId).map((item) => [item.turnId, item]));
  const wanted = state.turns.map((turn, place) => {
    const choice = place === last && state.choice?.id === turn.id ? state.choice : null;
    const memories = place === last && state.memories?.text ? state.memories : null;
    const mark = JSON.stringify([turn, place === last, choice, memories]);
    const item = items.get(turn.id) || make("li", {}, make("div", { className: "content" }));
    if (item.mark === mark) return item;
    const parts = showTurn(turn, place === last);
    const label = item.contains(focused) && focused.getAttribute("aria-label");
    item.firstChild.replaceChildren(...(choice ? showChoice(parts, choice) : parts), ...(memories ? [showMemories(memories)] : []));
    if (label) [...item.querySelectorAll("button")].find((one) => one.getAttribute("aria-label") === label)?.focus();
    return Object.assign(item, { turnId: turn.id, mark });
  });
  const kept = new Set(wanted);
  for (const item of [...list.children]) if (!kept.has(item)) item.remove();
  wanted.forEach((item, place) => { if (list.children[place] !== item) list.insertBefore(item, list.children[place] || null); });
  for (const turn of state.turns) {
    for (const kind of Object.keys(EDITORS)) {
      if (drafts[`${kind}:${turn.id}`] && !state.restored.has(`${kind}:${turn.id}`)) openEditor(turn, kind, false);
      state.restored.add(`${kind}:${turn.id}`);
    }
  }
}
state.restored = new Set(); // editors of turns that were shown already: a closed one stays closed

function showConversation({ turns, question, choice, memories, num_earlier, key, title }) {
  Object.assign(state, { turns, choice, memories, numEarlier: num_earlier });
  if (state.key !== NEW || turns.length) setKey(key);
  showTurns();
  $("empty").hidden = turns.length > 0;
  $("earlier").hidden = !num_earlier;
  $("sidebar").querySelector("summary").textContent = title ? `Conversations: ${title}` : "Conversations";
  $("rename").disabled = $("delete").disabled = !turns.length;
  showQuestion(question);
  follow();
}

function setKey(key) {
  if (state.key !== key && state.key === NEW) setDraft(`line:${NEW}`, "");
  if (state.key !== key) setDraft(`line:${key}`, $("line").value || drafts[`line:${key}`]);
  state.key = key;
  sessionStorage.setItem(CONVERSATION_KEY, key);
}

const conversationPath = (fields) => `/personal/conversation?${new URLSearchParams(fields)}`;

async function loadConversation() {
  if (state.reply) { state.isStale = true; return; }
  const wanted = state.key;
  if (wanted === NEW) return showConversation({ ...await get("/personal/conversation"), turns: [], memories: null, num_earlier: 0, title: "New" });
  const fields = wanted === null ? {} : { key: wanted, ...(state.turns.length ? { since: state.turns[0].id } : {}) };
  const shown = await get(conversationPath(fields));
  whenReleased(() => {
    if (state.key === wanted && !state.reply) showConversation(shown); // another one may have been opened meanwhile
  });
}

async function openConversation(key, since, typed = "") {
  if (state.reply) return tell(STILL_WRITING);
  Object.assign(state, { key, turns: [], sticks: !since });
  $("turns").replaceChildren();
  state.restored.clear();
  if (key === null || key === NEW) await loadConversation();
  else showConversation(await get(conversationPath({ key, ...(since ? { since } : {}) })));
  const fresh = typed || drafts["line:null"] || ""; // typed before we knew the conversation
  $("line").value = fresh || drafts[`line:${state.key}`] || "";
  setDraft("line:null", "");
  setDraft(`line:${state.key}`, $("line").value);
  markConversation();
  if (since) findTurn(since)?.scrollIntoView();
  else scrollDown();
}

let isLoadingEarlier = false;
async function loadEarlier() {
  if (isLoadingEarlier || !state.numEarlier || !state.turns.length) return;
  isLoadingEarlier = true;
  const main = $("main"), { key } = state;
  await attempt(async () => {
    const { turns, num_earlier } = await get(conversationPath({ key, before: state.turns[0].id }));
    if (state.key !== key) return;
    const height = main.scrollHeight - main.scrollTop;
    state.turns = [...turns, ...state.turns];
    state.numEarlier = num_earlier;
    $("earlier").hidden = !num_earlier;
    showTurns();
    main.scrollTop = main.scrollHeight - height;
  });
  isLoadingEarlier = false;
}

$("load-earlier").addEventListener("click", loadEarlier);

// conversations

async function loadConversations() {
  const { conversations } = await get(`/personal/conversations?q=${encodeURIComponent($("find-field").value)}`);
  const rows = conversations.map((row) => {
    const open = button(row.title || "Without words", () => attempt(() => openConversation(row.key, row.found)), "small");
    open.dataset.key = row.key;
    return make("li", {}, open, ...(row.found ? [make("p", { className: "note", dir: "auto", textContent: row.text })] : []));
  });
  if (!rows.length) rows.push(make("li", { className: "note", textContent: $("find-field").value ? "No conversation has these words." : "None yet." }));
  whenReleased(() => {
    const focused = document.activeElement?.dataset?.key;
    $("conversations").replaceChildren(...rows);
    if (focused !== undefined) [...$("conversations").querySelectorAll("button")].find((one) => one.dataset.key === focused)?.focus();
    markConversation();
  });
}

function markConversation() {
  for (const one of $("conversations").querySelectorAll("button")) {
    if (one.dataset.key === state.key) one.setAttribute("aria-current", "true");
    else one.removeAttribute("aria-current");
  }
}

async function beginConversation() {
  await attempt(() => openConversation(NEW));
  if (matchMedia("(max-width: 64rem)").matches) $("sidebar").open = false;
  $("line").focus();
}

async function renameConversation() {
  const dialog = $("title-dialog");
  $("title-field").value = $("conversations").querySelector("[aria-current]")?.textContent || "";
  dialog.returnValue = "no";
  dialog.showModal();
  await new Promise((done) => dialog.addEventListener("close", done, { once: true }));
  if (dialog.returnValue !== "yes") return;
  await attempt(() => post("/personal/rename", { key: state.key, title: $("title-field").value }));
  await attempt(loadConversations);
  await attempt(loadConversation);
}

async function deleteConversation() {
  const { key, turns, numEarlier } = state;
  const question = `Delete this conversation? All of its ${count(turns.length + numEarlier, "turn")} are forgotten. ${ADAPTERS_GO}`;
  if (!await confirmLoss(question, "Delete")) return;
  if (!await attempt(() => post("/personal/forget", { conversation: key }))) return;
  dropAllDrafts({ ids: turns.map((turn) => turn.id), conversation: key });
  await loadConversations();
  await attempt(() => openConversation($("conversations").querySelector("button")?.dataset.key ?? NEW));
}

let findTimer = 0;
$("find-field").addEventListener("input", () => {
  clearTimeout(findTimer);
  findTimer = setTimeout(() => attempt(loadConversations), 80);
});
$("find").addEventListener("submit", (event) => { event.preventDefault(); attempt(loadConversations); });
$("new").addEventListener("click", beginConversation);
$("rename").addEventListener("click", renameConversation);
$("delete").addEventListener("click", deleteConversation);

// the question

function showQuestion(question) {
  const box = $("question"), isNew = question && box.dataset.id !== question.id;
  box.hidden = !question;
  if (!question) { delete box.dataset.id; return; }
  const isOwn = state.turns.some((turn) => turn.id === question.id);
  const about = isOwn ? "" : ` (Elsewhere you wrote “${question.prompt}”, and the model replied “${question.response}”.)`;
  if (isNew) {
    $("question-text").textContent = question.text + about;
    $("better").value = drafts[`better:${question.id}`] || "";
    announce(question.text);
  }
  box.dataset.id = question.id;
}

const questionId = () => $("question").dataset.id;
$("better").addEventListener("input", () => setDraft(`better:${questionId()}`, $("better").value));
$("question-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const better = $("better").value, id = questionId();
  if (!better.trim()) return tell(NO_WORDS);
  if (await giveFeedback(id, { kind: "better", better }, "Your version is stored")) setDraft(`better:${id}`, "");
});
$("question-fine").addEventListener("click", () => giveFeedback(questionId(), {}, "Thank you"));
$("question-skip").addEventListener("click", skip);

async function streamReply(path, body) { // whether the turn is stored
  if (state.reply) return tell(STILL_WRITING);
  state.reply = new AbortController();
  $("send").textContent = "Stop";
  $("question").hidden = true;
  const item = path.endsWith("again") || body.replaces ? $("turns").lastChild : make("li");
  const own = make("p", { className: "message own", dir: "auto", textContent: body.text });
  const shown = make("p", { className: "message reply", dir: "auto", textContent: "…" });
  if (!item.parentNode) $("turns").append(item);
  item.mark = ""; // so that it is drawn anew at the end
  item.querySelector(".content")?.querySelectorAll(body.text ? "*" : body.keeps_both ? ".row" : ".reply, .note, .row").forEach((part) => part.remove());
  item.querySelectorAll("form").forEach((form) => { form.hidden = true; });
  item.append(...(body.text ? [own] : []), shown);
  $("empty").hidden = true;
  scrollDown();
  let text = "", draft = "", isStored = false;
  try {
    for await (const event of readEvents(await send("POST", path, body, state.reply.signal))) {
      if (event.detail) throw new Error(event.detail);
      if (event.unsaved) tell(event.unsaved);
      if (event.conversation !== undefined) {
        isStored = true;
        setKey(event.conversation);
      }
      if (event.draft || event.piece) {
        draft = event.piece ? "" : draft + event.draft;
        text += event.piece || "";
        noteScroll();
        shown.textContent = draft || text;
        follow();
      }
    }
    announce(text);
  } catch (error) {
    tell(error.name === "AbortError" ? "stopped; this reply is not kept" : error.message);
    if (body.text && !body.replaces && !$("line").value) $("line").value = body.text;
    if (body.replaces) setDraft(`line:${state.key}`, $("line").value = $("line").value || body.text);
  }
  noteScroll();
  own.remove();
  shown.remove();
  item.querySelectorAll("form").forEach((form) => { form.hidden = false; });
  if (!item.turnId) item.remove();
  setDraft(`line:${state.key}`, $("line").value);
  state.reply = null;
  $("send").textContent = "Send";
  if (state.token) await refresh();
  return isStored;
}

// the message line

const COMMANDS = {
  "/new": ["begin a conversation", beginConversation],
  "/rename": ["give this conversation a title", renameConversation],
  "/search": ["search the conversations for words", (words) => {
    $("sidebar").open = true;
    $("find-field").value = words;
    return attempt(loadConversations);
  }],
  "/again": ["write another reply in place of the last one", () => streamReply("/personal/again", { conversation: state.key })],
  "/undo": ["delete the last turn", undo],
  "/learn": ["start a fine-tune on your answers", async () => {
    const result = await attempt(() => post("/personal/learn"));
    if (result) tell(result.message);
  }],
  "/forget": ["forget all that contains words", (words) => words && forgetDialogues({ text: words }, `Forget all dialogues with “${words}”?`)],
  "/memory": ["show the memory", () => document.querySelector("nav [data-view=memory]").click()],
  "/help": ["list the commands", () => tell(Object.entries(COMMANDS).map(([name, [words]]) => `${name}: ${words}`).join(" · "))],
};

function runCommand(line) { // whether the line was one
  const [, name, words] = line.match(/^(\/[a-z]+)(?:\s+([^]*))?$/) || [];
  if (!name) return false;
  if (COMMANDS[name]) COMMANDS[name][1]((words || "").trim());
  else tell(`There is no command ${name}. /help lists the commands.`);
  return true;
}

async function submitLine() {
  if (state.reply) return state.reply.abort();
  await state.opening;
  const text = $("line").value.trim();
  if (!text) return;
  $("line").value = "";
  setDraft(`line:${state.key}`, "");
  if (!runCommand(text)) streamReply("/personal/chat", { text, conversation: state.key });
}

$("line").addEventListener("input", () => setDraft(`line:${state.key}`, $("line").value));
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && state.reply && !document.querySelector("dialog[open]")) state.reply.abort();
});
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

const ADAPTERS_GO = "This also deletes the replies that read it, every adapter that learned from it, and all later adapters.";
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
  if (!await confirmLoss(`${question} ${ADAPTERS_GO}`, "Forget")) return;
  const before = state.status.is_learning ? "Stopping the fine-tune, then forgetting …" : "Forgetting …";
  $("forgotten").replaceChildren(make("p", { textContent: before }));
  const report = await attempt(() => post("/personal/forget", request));
  await attempt(loadMemory);
  if (!report) return $("forgotten").replaceChildren();
  dropAllDrafts(request);
  const counts = `Forgotten: ${count(report.dialogues, "dialogue")}, ${count(report.turns, "turn")} of the chat, ${count(report.adapters, "adapter")}.`;
  const read = report.replies ? ` ${count(report.replies, "turn")} went because the reply had read a forgotten one.` : "";
  const stay = report.reacted ? ` ${count(report.reacted, "turn")} to which you reacted stayed.` : "";
  const rest = report.unreachable.map((text) => make("li", { textContent: text }));
  $("forgotten").replaceChildren(make("p", { textContent: counts + read + stay }),
    ...(rest.length ? [make("p", { textContent: "This program cannot reach:" }), make("ul", {}, ...rest)] : []));
  await refresh();
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
    ? [`Read ${count(result.dialogues, "dialogue")}; ${result.kept} entered the memory.`, ...result.notes].join(" · ")
    : "The file was not imported.";
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
  const last = rounds.length ? ` The last one took ${rounds[rounds.length - 1].seconds.toFixed(0)} seconds.` : "";
  $("learning-state").textContent = learning ? `A fine-tune is running.${last} You can go on chatting.`
    : `${outcome}New answers since the last fine-tune: ${fresh}. ${start} Fine-tunes so far: ${rounds.length}.`;
  $("benefit").textContent = state.status.benefit;
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
$("sidebar").open = matchMedia("(min-width: 64rem)").matches;
start();
watchStatus();

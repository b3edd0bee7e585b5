// the page: its parts, and what a key or a button does
import { goToEnd, isWriting, openTalks, stopReply } from "./chat.js";
import { $, attempt, onSubmit, show, wide } from "./dom.js";
import { loadKnown, loadStatus } from "./known.js";
import { ask, keepKey, session } from "./server.js";
import { change, page } from "./turns.js";

function showSection(name) {
  for (const section of document.querySelectorAll("main > section")) section.hidden = section.id !== name;
  $("open-known").ariaExpanded = String(name === "known");
  $("open-known").textContent = name === "known" ? "Back to the chat" : "What I know about you";
  if (name === "chat") goToEnd();
}

session.onRefused = () => { keepKey(""); showSection("connect"); };

const connect = async (text) => keepKey((await (await ask("/connect", { text })).json()).key); // text: the key, or a link's code

async function begin() {
  await page.loadTalk();
  showSection("chat");
  await loadStatus();
  $("line").focus();
}

$("open-known").onclick = () => attempt(async () => {
  if (!session.key) return;
  show();
  if (!$("known").hidden) return showSection("chat");
  await loadKnown();
  showSection("known");
  $("known-title").focus();
});
$("new").onclick = () => { $("line").focus(); attempt(() => page.openTalk("new")); };
$("open-talks").onclick = () => { show(); openTalks($("talks").hidden); };
$("forget-all").onclick = () => page.forget({ everything: true });
onSubmit($("forget-form"), () => page.forget({ text: $("words").value }));
onSubmit($("always-form"), async () => {
  await change("react", { kind: "always", text: $("always").value });
  $("always").value = "";
});
onSubmit($("connect-form"), async () => { await connect($("token").value.trim()); await begin(); });
onSubmit($("composer"), async () => {
  if (isWriting()) return stopReply();
  const text = $("line").value.trim();
  $("line").value = "";
  return text && page.send(text);
});
$("line").onkeydown = (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || isWriting()) return;
  event.preventDefault();
  $("composer").requestSubmit();
};
addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || document.querySelector("[open]:modal, :popover-open")) return;
  stopReply();
  show();
});
$("recall").onclick = () => { show($("said").textContent || "What you did last:"); $("take-back").focus(); };
$("dismiss").onclick = () => { show(); $("main").focus(); };
$("take-back").onclick = () => attempt(async () => {
  await change($("take-back").value, { number: Number($("take-back").dataset.act) }).finally(loadStatus);
  if ($("take-back").hidden) $("main").focus();
});
for (const button of document.querySelectorAll("#steps button")) button.onclick = () => page.send(button.textContent);
setInterval(() => { if (session.key && !document.hidden) attempt(loadStatus); }, 5000);
wide.onchange = () => openTalks(wide.matches);
wide.onchange();

onhashchange = () => location.reload(); // a new link in a tab that shows the page already
const code = new URLSearchParams(location.hash.slice(1)).get("code");
if (code) history.replaceState(null, "", location.pathname);
attempt(async () => {
  if (code) await connect(code).catch((error) => session.key || show(error.message)); // a link works once
  if (session.key) await begin();
  else showSection("connect");
});

// the page: its parts, and what a key or a button does
import { goToEnd, isWriting, stopReply } from "./chat.js";
import { $, attempt, isWide, onSubmit, show } from "./dom.js";
import { loadKnown, loadStatus } from "./known.js";
import { ask, keepToken, session } from "./server.js";
import { change, page } from "./turns.js";

function showSection(name) {
  for (const section of document.querySelectorAll("main > section")) section.hidden = section.id !== name;
  $("open-known").ariaExpanded = String(name === "known");
  $("open-known").textContent = name === "known" ? "Back to the chat" : "What I know about you";
  if (name === "chat") goToEnd();
}

session.onRefused = () => { keepToken(""); showSection("connect"); };

const connect = (given, code) => attempt(async () => {
  session.token = code ? (await (await ask("/connect", { text: code })).json()).token : given; // a code works once
  await page.loadTalk();
  keepToken(session.token);
  showSection("chat");
  await loadStatus();
  $("line").focus();
});

$("open-known").onclick = () => attempt(async () => {
  if (!session.token) return;
  show("");
  if (!$("known").hidden) return showSection("chat");
  await loadKnown();
  showSection("known");
  $("known-title").focus();
});
$("new").onclick = () => attempt(async () => { await page.openTalk("new"); $("line").focus(); });
$("forget-all").onclick = () => page.forget({ everything: true });
onSubmit($("forget-form"), () => page.forget({ text: $("words").value }));
onSubmit($("always-form"), async () => {
  await change("react", { kind: "always", text: $("always").value }, "Instruction added. It applies to all replies.");
  $("always").value = "";
});
onSubmit($("connect-form"), () => connect($("token").value.trim()));
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
  if (event.key === "Escape" && !document.querySelector("[open]:modal, :popover-open")) stopReply();
});
$("take-back").onclick = () => attempt(async () => { await change("take_back"); if ($("take-back").hidden) $("main").focus(); });
for (const button of $("examples").children) button.onclick = () => page.send(button.textContent);
setInterval(() => { if (session.token && !document.hidden) attempt(loadStatus); }, 5000);
$("talks").open = isWide();

const code = new URLSearchParams(location.hash.slice(1)).get("code");
if (code) history.replaceState(null, "", location.pathname);
if (session.token || code) connect(session.token, session.token ? "" : code);
else showSection("connect");

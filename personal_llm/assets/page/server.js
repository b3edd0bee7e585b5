// requests to the server
const PLACE = "personal_llm.key"; // of one half of what signs this browser in; the other half is a cookie that no script reads
const NO_ANSWER = "The server does not answer. Start personal-llm serve again; on the same port, this page goes on.";
export const session = { key: localStorage.getItem(PLACE) || "", onRefused: () => {} };
const explain = (error) => { throw error.name === "AbortError" ? error : new Error(NO_ANSWER); };

export async function ask(path, body, signal) {
  const headers = { Authorization: `Bearer ${session.key}`, "Content-Type": "application/json" };
  const options = body ? { method: "POST", headers, body: JSON.stringify(body), signal } : { headers };
  const response = await fetch(path, options).catch(explain);
  if (response.ok) return response;
  if (response.status === 401 && path !== "/connect") session.onRefused();
  const content = await response.json().catch(() => ({ error: { message: `error ${response.status}` } }));
  throw new Error(content.error.message);
}

export const get = async (name, fields = {}) => (await ask(`/me/${name}?${new URLSearchParams(fields)}`)).json();
export const post = async (name, body = {}) => (await ask(`/me/${name}`, body)).json();

export function keepKey(key) {
  session.key = key;
  localStorage.setItem(PLACE, key);
}

export async function* readEvents(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch(explain);
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) if (part !== "data: [DONE]") yield JSON.parse(part.slice(6));
  }
}

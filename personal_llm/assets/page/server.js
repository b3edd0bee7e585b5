// requests to the server
const PLACE = "personal_llm.token"; // of the token in this tab's storage
const NO_ANSWER = "The server does not answer. Start personal-llm serve again, and open the link that it prints.";
export const session = { token: sessionStorage.getItem(PLACE) || "", onRefused: () => {} };
const explain = (error) => { throw error.name === "AbortError" ? error : new Error(NO_ANSWER); };

export async function ask(path, body, signal) {
  const headers = { Authorization: `Bearer ${session.token}`, "Content-Type": "application/json" };
  const options = body ? { method: "POST", headers, body: JSON.stringify(body), signal } : { headers };
  const response = await fetch(path, options).catch(explain);
  if (response.ok) return response;
  if (response.status === 401) session.onRefused();
  const content = await response.json().catch(() => ({ error: { message: `error ${response.status}` } }));
  throw new Error(content.error.message);
}

export const get = async (name, fields = {}) => (await ask(`/me/${name}?${new URLSearchParams(fields)}`)).json();
export const post = async (name, body = {}) => (await ask(`/me/${name}`, body)).json();

export function keepToken(token) {
  session.token = token;
  sessionStorage.setItem(PLACE, token);
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

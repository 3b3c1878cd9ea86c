// Talks to the server: token, errors as one sentence each, streams of events.
import { h, newId } from "./dom.js";

const KEY = "fqgan-token";

/** Moves the token from the address into this browser tab's storage, so that shared links do not carry it. */
export function takeToken() {
  const address = new URL(location.href);
  const token = address.searchParams.get("token");
  if (token === null) return;
  sessionStorage.setItem(KEY, token);
  address.searchParams.delete("token");
  history.replaceState(history.state, "", address);
}

function headers(more = {}) {
  const token = sessionStorage.getItem(KEY);
  return token ? { ...more, Authorization: `Bearer ${token}` } : more;
}

/** An error that says in one sentence what happened and what to do. */
export class ServerError extends Error {
  constructor(sentence, { status = 0, extra, final = false } = {}) {
    super(sentence);
    Object.assign(this, { sentence, status, extra, final });
  }
}

function tokenForm() {
  const input = h("input", { type: "password", id: newId("token"), autocomplete: "off", required: true });
  const keep = (event) => {
    event.preventDefault();
    sessionStorage.setItem(KEY, input.value.trim());
    location.reload();
  };
  return h("form.token", { onsubmit: keep }, h("label", { htmlFor: input.id }, "Token"), input,
    h("button.primary", { type: "submit" }, "Use it"));
}

async function failure(answer) {
  let said = "";
  try {
    const body = await answer.json();
    said = body.error?.message ?? body.error ?? "";
  } catch {
    // an answer without JSON, of a proxy for instance: the status says enough
  }
  const status = answer.status;
  if (status === 401) {
    const start = sessionStorage.getItem(KEY) ? "The server does not accept this token." : "This server asks for a token.";
    return new ServerError(`${start} Open the address that it printed when it started, or enter the token here.`,
      { status, extra: tokenForm, final: true });
  }
  if (status === 429 || status === 503) {
    const wait = Number(answer.headers.get("Retry-After"));
    const when = wait ? `in ${wait} second${wait === 1 ? "" : "s"}` : "in a moment";
    return new ServerError(`The server is busy. Try again ${when}.`, { status });
  }
  if (status === 413) return new ServerError(said || "This picture is too large for the server. Choose a smaller one.", { status, final: true });
  // the same request would be refused again
  const final = status >= 400 && status < 500 && status !== 408;
  if (said) return new ServerError(/[.!?]$/.test(said) ? said : `${said}.`, { status, final });
  return new ServerError(`The server answered with status ${status}. Its terminal says more.`, { status });
}

/** fetch with the token; anything but success becomes a ServerError. */
async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { ...options, headers: headers(options.headers) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw gone();
  }
  if (!answer.ok) throw await failure(answer);
  return answer;
}

const gone = () => new ServerError("The server does not answer. Check that fqgan serve still runs, then try again.");

const asJson = (body, signal) => ({
  method: "POST",
  body: JSON.stringify(body),
  headers: { "Content-Type": "application/json" },
  signal,
});

export const getModels = async () => (await ask("api/models")).json();

export const getDescription = async () => (await ask("openapi.json")).json();

export async function post(path, body, signal) {
  return (await ask(path, asJson(body, signal))).json();
}

/** Posts a picture: a packaged one by name, a file as a form. `source` is what pickers give. */
export async function postPicture(path, model, source, signal) {
  if (source.kind === "photo") return post(path, { model, picture: source.name }, signal);
  const form = new FormData();
  form.set("model", model);
  form.set("picture", source.file, source.file.name || "picture.png");
  return (await ask(path, { method: "POST", body: form, signal })).json();
}

const addresses = new Map();

/** An address of a packaged picture that <img> can show: it is fetched once, since <img> sends no token. */
export function pictureAddress(url) {
  if (!addresses.has(url)) {
    const relative = url.replace(/^\//, "");
    const address = ask(relative).then((answer) => answer.blob()).then((blob) => URL.createObjectURL(blob));
    address.catch(() => addresses.delete(url));
    addresses.set(url, address);
  }
  return addresses.get(url);
}

/** Reads a stream of events: `handlers` by event name get each event's data. An event `error` ends it. */
export async function stream(path, body, handlers, signal) {
  const answer = await ask(path, asJson({ ...body, stream: true }, signal));
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let done = false;
  try {
    for (;;) {
      const { value, done: closed } = await reader.read();
      if (closed) break;
      const parts = (rest + value).split(/\r?\n\r?\n/);
      rest = parts.pop();
      for (const part of parts) done = handle(part, handlers) || done;
    }
  } catch (error) {
    throw error.sentence || error.name === "AbortError" ? error : gone();
  }
  if (!done) throw new ServerError("The server stopped before the pictures were done. Try again.");
}

function handle(part, handlers) {
  let name = "message";
  const data = [];
  for (const line of part.split(/\r?\n/)) {
    if (line.startsWith("event:")) name = line.slice(6).trim();
    else if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
  }
  if (!data.length) return false;
  const content = JSON.parse(data.join("\n"));
  if (name === "error") throw new ServerError(String(content.error ?? "The server could not go on. Try again."));
  handlers[name]?.(content);
  return name === "done";
}

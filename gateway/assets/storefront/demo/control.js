// The control port of `scripts/up`. The address of the page has its port and a token that is good once, for a session key,
// which a reload keeps.

import { readEvents } from "../client/sse.js";

const SESSION = "shoppee.demo";
/** The delay before the state is read again after a lost connection. Milliseconds. */
const RETRY_DELAY = 1_000;

function readSession() {
  const [, port, token] = /^#(\d{1,5})\.([0-9a-f]{64})$/.exec(location.hash) ?? [];
  // The token is not kept in the history.
  if (location.hash) history.replaceState(null, "", location.pathname);
  return token ? { port, token } : JSON.parse(sessionStorage.getItem(SESSION) ?? "null");
}

/** A connection to the control port. `onState` gets each state, `onLost` an interruption, `onRefused` the end. */
export class Control {
  #session = readSession();
  #handlers;

  constructor(handlers) {
    this.#handlers = handlers;
    this.#run();
  }

  /** Starts something. A state shows its outcome. */
  async start(path) {
    const response = await this.#send(path, { method: "POST" });
    if (!response.ok && response.status !== 409) throw new Error(`${path}: ${response.status}`);
  }

  async #run() {
    const { onState, onLost, onRefused } = this.#handlers;
    if (!this.#session) return onRefused();
    for (;;) {
      try {
        if (!this.#session.key && !(await this.#open())) return onRefused();
        const response = await this.#send("/state");
        if (response.status === 401) return onRefused();
        for await (const { data } of readEvents(response.body)) if (data) onState(JSON.parse(data));
      } catch (error) {
        if (!(error instanceof TypeError)) console.error(error);
      }
      onLost();
      await new Promise((resolve) => setTimeout(resolve, RETRY_DELAY));
    }
  }

  /** Exchanges the token of the address. Reports whether the shop took it. */
  async #open() {
    const { port, token } = this.#session;
    const headers = { "content-type": "application/json" };
    const response = await fetch(`http://127.0.0.1:${port}/session`, { method: "POST", headers, body: JSON.stringify({ token }) });
    if (!response.ok) return false;
    this.#session = { port, key: (await response.json()).session };
    sessionStorage.setItem(SESSION, JSON.stringify(this.#session));
    return true;
  }

  #send(path, init = {}) {
    const { port, key } = this.#session;
    return fetch(`http://127.0.0.1:${port}${path}`, { ...init, headers: { authorization: `Bearer ${key}` } });
  }
}

// Writes that survive a reload, an outage and a new sign-in: a durable queue. Each write is stored with its idempotency
// key before it is sent, and removed when its outcome is known. Until then it is sent again under the same key.

import { ProblemError } from "@shoppee/client";
import { state, update } from "./store.js";

const STORE = "shoppee.writes";
/** The shop keeps the response of a key for so long. Milliseconds. */
const MAX_AGE = 23 * 60 * 60 * 1000;
/** Between two tries. Milliseconds. */
const FIRST_RETRY_DELAY = 500;
const MAX_RETRY_DELAY = 5_000;
const AGAIN = [408, 429, 500, 502, 503, 504];
/** An error of the shop itself may come back with each try. */
const MAX_INTERNAL_ERRORS = 5;

/** The handlers of successful responses, by kind of write. */
const handlers = {};
/** The last promise of each lane: writes of one lane run in their order. */
const lanes = new Map();
let send;

/** Loads the writes of the page before a reload. `request` sends a write; `byKind` handles its response. */
export function startWrites(request, byKind) {
  send = request;
  Object.assign(handlers, byKind);
  const stored = JSON.parse(sessionStorage.getItem(STORE) ?? "[]");
  keep(stored.filter(({ at }) => Date.now() - at < MAX_AGE));
}

/** Sends pending writes again after a sign-in. Drops writes of another user. */
export function resumeWrites(report) {
  const { user, pending } = state;
  if (user === undefined) return;
  const mine = pending.filter((write) => write.user === undefined || write.user === user.id);
  keep(mine.map((write) => ({ ...write, user: user.id })));
  for (const write of state.pending) if (!running.has(write.id)) enqueue(write).catch(report);
}

export function dropWrites() {
  keep([]);
}

/** Reports whether a write with this id is pending. */
export const isPending = (id) => state.pending.some((write) => write.id === id);

const running = new Map();

/** Sends a write, or joins the one that is under way. `write` is `{ id, kind, lane, method, path, params, body }`. */
export function submit(write) {
  const known = running.get(write.id);
  if (known) return known;
  const stored = { ...write, key: newKey(), at: Date.now(), user: state.user?.id };
  // One that waits for a sign-in is replaced.
  keep([...state.pending.filter(({ id }) => id !== write.id), stored]);
  return enqueue(stored);
}

function enqueue(write) {
  const before = lanes.get(write.lane) ?? Promise.resolve();
  const result = before.catch(() => {}).then(() => run(write));
  lanes.set(write.lane, result);
  running.set(write.id, result);
  const end = () => running.delete(write.id);
  result.then(end, end);
  return result;
}

async function run(write) {
  for (let tries = 0; ; tries += 1) {
    try {
      const result = await send(write);
      remove(write);
      await handlers[write.kind]?.(result, write);
      return result;
    } catch (error) {
      // A write without a valid token waits for the sign-in.
      const isUnsigned = error instanceof ProblemError && error.status === 401;
      const isOver = !isUnknown(error) || (error.status === 500 && tries >= MAX_INTERNAL_ERRORS);
      if (isOver && !isUnsigned) remove(write);
      if (isOver) throw error;
      await pause(Math.max((error.retryAfter ?? 0) * 1000, backoff(tries)));
      // Signed out, or of another user by now.
      if (!isStored(write)) throw error;
    }
  }
}

/** Reports whether a write may have been done, or may be tried again: without a response, or after a temporary refusal. */
export function isUnknown(error) {
  if (error instanceof ProblemError) return AGAIN.includes(error.status) || error.code === "request_in_progress";
  return error instanceof TypeError || ["TimeoutError", "AbortError"].includes(error.name);
}

/** Reads until there is an answer. Gives up where `isOver` says so, or where the shop refuses for good. */
export async function retry(read, isOver = () => false) {
  for (let tries = 0; ; tries += 1) {
    try {
      return await read();
    } catch (error) {
      if (!isUnknown(error) || isOver()) throw error;
      await pause(Math.max((error.retryAfter ?? 0) * 1000, backoff(tries)));
      if (isOver()) throw error;
    }
  }
}

function backoff(tries) {
  return Math.min(MAX_RETRY_DELAY, FIRST_RETRY_DELAY * 2 ** tries) * (0.5 + Math.random() / 2);
}

/** Waits, or until the browser is online again. */
function pause(delay) {
  return new Promise((resolve) => {
    const end = () => {
      clearTimeout(timer);
      removeEventListener("online", end);
      resolve();
    };
    const timer = setTimeout(end, delay);
    addEventListener("online", end);
  });
}

const isStored = (write) => state.pending.some(({ key }) => key === write.key);

function remove(write) {
  keep(state.pending.filter(({ key }) => key !== write.key));
}

function keep(pending) {
  sessionStorage.setItem(STORE, JSON.stringify(pending));
  update({ pending });
}

/** Returns a random key. Pages without TLS have no `randomUUID`. */
export function newKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// Writes that survive a reload, an outage and a new sign-in: a durable queue. Each write is stored with its idempotency
// key before it is sent, and removed when its outcome is known. Until then it is sent again under the same key.

import { ProblemError } from "@shoppee/client";
import { state, update } from "./store.js";

const STORAGE_KEY = "shoppee.writes";
/** Bounds the age of a stored write, below the 24 h for which the shop keeps the response of a key. Milliseconds. */
const MAX_WRITE_AGE = 23 * 60 * 60 * 1000;
/** The delay between two tries doubles from the first to the maximum. Milliseconds. */
const FIRST_RETRY_DELAY = 500;
const MAX_RETRY_DELAY = 5_000;
const RETRYABLE_STATUSES = [408, 429, 500, 502, 503, 504];
/** Bounds the internal errors (500) of one write, as such an error may come back with each try. */
const MAX_INTERNAL_ERRORS = 5;

/** The error of a write that was dropped: its user has signed out, or another user has signed in. */
export class DroppedWrite extends Error {}

/** The handlers of successful responses, by kind of write. */
const handlers = {};
/** The last promise of each lane: writes of one lane run in their order. */
const lanes = new Map();
let send;

/** Loads the writes of the page before a reload. `request` sends a write; `byKind` handles its response. */
export function startWrites(request, byKind) {
  send = request;
  Object.assign(handlers, byKind);
  const stored = JSON.parse(sessionStorage.getItem(STORAGE_KEY) ?? "[]");
  const fresh = stored.filter(({ at }) => Date.now() - at < MAX_WRITE_AGE);
  keep(fresh.map((write) => ({ ...write, isSent: false })));
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

/** Returns the pending write with this id. */
export const findPending = (id) => state.pending.find((write) => write.id === id);

const running = new Map();

/** Sends a write, or joins the one that is under way. `write` is `{ id, kind, lane, method, path, params, body }`. */
export function submit(write) {
  const current = running.get(write.id);
  if (current) return current;
  const stored = { ...write, key: newKey(), at: Date.now(), user: state.user?.id };
  // Replaces a stored write with this id that waits for a sign-in.
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
  let internalErrors = 0;
  for (let tries = 0; ; tries += 1) {
    if (!isStored(write) || isOfAnotherUser(write)) throw new DroppedWrite();
    try {
      markSent(write, true);
      const result = await send(write);
      remove(write);
      await handlers[write.kind]?.(result, write);
      return result;
    } catch (error) {
      // A write without a valid token waits for the sign-in.
      const isUnsigned = error instanceof ProblemError && error.status === 401;
      if (error.status === 500) internalErrors += 1;
      const isOver = !isRetryable(error) || internalErrors > MAX_INTERNAL_ERRORS;
      if (isOver && !isUnsigned) remove(write);
      else markSent(write, false);
      if (isOver) throw error;
      await pause(Math.max((error.retryAfter ?? 0) * 1000, backoff(tries)));
    }
  }
}

/** Reports whether a write may have been done, or may be tried again: without a response, or after a temporary refusal. */
export function isRetryable(error) {
  if (error instanceof ProblemError) return RETRYABLE_STATUSES.includes(error.status) || error.code === "request_in_progress";
  return error instanceof TypeError || ["TimeoutError", "AbortError"].includes(error.name);
}

/** Reads until there is an answer. Gives up where `isOver` says so, or where the shop refuses for good. */
export async function retry(read, isOver = () => false) {
  for (let tries = 0; ; tries += 1) {
    try {
      return await read();
    } catch (error) {
      if (!isRetryable(error) || isOver()) throw error;
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

/** Without a user the shop refuses the write (401), which then waits for the sign-in. */
const isOfAnotherUser = ({ user }) => user !== undefined && state.user !== undefined && user !== state.user.id;

function remove(write) {
  keep(state.pending.filter(({ key }) => key !== write.key));
}

/** Records whether the shop has the write and its response is awaited; otherwise the next try is. */
function markSent(write, isSent) {
  keep(state.pending.map((stored) => (stored.key === write.key ? { ...stored, isSent } : stored)));
}

function keep(pending) {
  sessionStorage.setItem(STORAGE_KEY, JSON.stringify(pending));
  update({ pending });
}

/** Returns a random key. Pages without TLS have no `randomUUID`. */
export function newKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// The shop behind the views: the client, the session, live events, shared reads, and writes.

import { ProblemError, Shoppee } from "@shoppee/client";
import { t } from "./i18n.js";
import { explain } from "./problems.js";
import { currentRoute, go, hasRoute, signInAddress } from "./router.js";
import { keepOrders, keepProducts, notify, state, update } from "./store.js";
import { DroppedWrite, dropWrites, isRetryable, newKey, resumeWrites, retry, startWrites, submit } from "./writes.js";

const SESSION = "shoppee.session";
const DEVICE = "shoppee.device";
/** The address of the checkout as it was typed last: it survives a reload, and is there for the next order. */
export const ADDRESS = "shoppee.address";
/** A request without a response for so long is given up, and sent again where that is safe. Milliseconds. */
const REQUEST_TIMEOUT = 12_000;
/** Before a lost connection is shown: most come back at once. Milliseconds. */
const LOST_DELAY = 800;

/** The client. A new one follows when another tab changes the session. */
export let client = connect();

function connect() {
  const saved = JSON.parse(localStorage.getItem(SESSION) ?? "null");
  state.user = saved?.tokens.user;
  return new Shoppee({
    url: location.origin,
    tokens: saved?.tokens,
    tokensAge: saved ? Date.now() - saved.time : 0,
    onTokens(tokens) {
      if (tokens) localStorage.setItem(SESSION, JSON.stringify({ tokens, time: Date.now() }));
      else localStorage.removeItem(SESSION);
      enter(tokens?.user);
    },
    deviceToken: localStorage.getItem(DEVICE) ?? undefined,
    onDeviceToken: (token) => localStorage.setItem(DEVICE, token),
    fetch: send,
  });
}

/** Sends a request with a timeout, and tracks the availability of the shop. */
async function send(request) {
  const timeout = new AbortController();
  const timer = setTimeout(() => timeout.abort(new DOMException("no response in time", "TimeoutError")), REQUEST_TIMEOUT);
  const signal = AbortSignal.any([request.signal, timeout.signal]);
  try {
    const response = await fetch(request, { signal });
    // A stream of events has no end.
    if (response.headers.get("content-type") === "text/event-stream") clearTimeout(timer);
    if (state.isUnreachable && ![502, 503, 504].includes(response.status)) update({ isUnreachable: false });
    return response;
  } catch (error) {
    if (!request.signal.aborted) update({ isUnreachable: true });
    throw error;
  }
}

// The session.

export async function signIn(username, password) {
  await client.signIn(username, password);
  resumeWrites(report);
}

/** A repeated registration of the same account has the same key, also after a reload: it is answered as the first. */
export async function register({ username, email, password }) {
  const store = "shoppee.registration";
  const saved = JSON.parse(sessionStorage.getItem(store) ?? "null");
  const isRepeat = saved?.username === username && saved?.email === email;
  const key = isRepeat ? saved.key : newKey();
  sessionStorage.setItem(store, JSON.stringify({ username, email, key }));
  const forget = () => sessionStorage.removeItem(store);
  const headers = { "Idempotency-Key": key };
  await client.post("/api/v1/auth/register", { body: { username, email, password }, headers }).catch((error) => {
    if (!isRetryable(error)) forget();
    throw error;
  });
  forget();
  await signIn(username, password);
}

export async function signOut(everywhere = false) {
  // First, as the shop closes the socket of a session that has ended.
  stopEvents();
  try {
    await (everywhere ? client.post("/api/v1/auth/logout-all") : client.signOut());
    dropWrites();
    localStorage.removeItem(SESSION);
    localStorage.removeItem(ADDRESS);
    client = connect();
    enter(undefined);
  } catch (error) {
    if (state.user && hasEvents) followEvents();
    throw error;
  }
}

/** Replaces the user, with the cart, the orders and the live events. */
function enter(user) {
  if (user && user.id === state.user?.id) return;
  stopEvents();
  state.orders.clear();
  update({ user, cart: undefined });
  if (user && hasEvents) followEvents();
}

/** Leads to the sign-in, which leads back. The back office shows it in place. */
export function askToSignIn() {
  if (hasRoute("signIn") && !["signIn", "register"].includes(currentRoute().name)) go(signInAddress());
}

/** Shows an error to the customer. After a 401 it leads to the sign-in. */
export function report(error) {
  if (error instanceof DroppedWrite) return;
  if (error instanceof ProblemError && error.status === 401) askToSignIn();
  notify(explain(error), "error");
}

// Reads that several views share.

export async function loadCategories() {
  const { items } = await client.get("/api/v1/categories", { params: { query: { limit: 100 } } });
  update({ categories: items });
}

export async function loadCart() {
  update({ cart: await client.get("/api/v1/cart") });
}

export async function loadOrders() {
  keepOrders((await client.get("/api/v1/orders", { params: { query: { limit: 50 } } })).items);
}

export async function loadOrder(id) {
  keepOrders([await client.get("/api/v1/orders/{id}", { params: { path: { id } } })]);
}

export async function loadProduct(id) {
  const product = await client.get("/api/v1/products/{id}", { params: { path: { id: Number(id) } } });
  // The browser has the rest of a response that did not change (304).
  if (product) keepProducts([product]);
  update({});
  return product;
}

const loadMine = () => Promise.all([loadCart(), loadOrders()]);

// Live events. The client resumes behind the last number: no step is missed or seen twice.

let events;
let lostTimer;
/** True on a page that follows the orders of its user. */
let hasEvents = false;

/** Shows the state of live events. A loss is shown after a delay. */
export function showLive(live) {
  clearTimeout(lostTimer);
  if (live === "waiting") {
    lostTimer = setTimeout(() => update({ live }), LOST_DELAY);
    return;
  }
  const wasLost = state.live === "waiting";
  update({ live });
  if (live === "open" && wasLost) announce(t("live.caught_up"));
}

function followEvents(after) {
  let isFirst = true;
  const following = client.events(
    {
      onState(live) {
        if (events !== following) return;
        showLive(live);
        if (live !== "open") return;
        // The cart and the orders are read after the socket is open, so that no step between the two is missed.
        if (isFirst) retry(loadMine).catch(reportUnlessTransient);
        isFirst = false;
      },
      onOrder({ content: { order_id: id, ...order } }) {
        keepOrders([{ id, ...order }]);
        announce(t(`announce.${order.status}`, { order: shortId(id) }));
      },
      onReset: () => retry(loadMine).catch(reportUnlessTransient),
      // The next call says why the events ended, as where the session did.
      onError: () => retry(loadMine).catch(report),
    },
    { after },
  );
  events = following;
}

function stopEvents() {
  clearTimeout(lostTimer);
  const seq = events?.seq;
  events?.close();
  events = undefined;
  if (state.live !== "closed") update({ live: "closed" });
  return seq;
}

function reportUnlessTransient(error) {
  if (!isRetryable(error)) report(error);
}

addEventListener("offline", () => {
  update({ isOffline: true });
  if (!events) return;
  resumeAfter = stopEvents();
  update({ live: "waiting" });
});
let resumeAfter;
addEventListener("online", () => {
  update({ isOffline: false, isUnreachable: false });
  // The client would wait for the end of its delay.
  if (state.user && hasEvents) followEvents(resumeAfter ?? stopEvents());
  resumeAfter = undefined;
});

// Another tab renewed the tokens, or signed in or out: a refresh token serves once, so that all tabs need the last one.
addEventListener("storage", ({ key }) => {
  if (key !== SESSION) return;
  const after = stopEvents();
  const before = state.user?.id;
  client = connect();
  if (state.user?.id !== before) {
    state.orders.clear();
    update({ cart: undefined });
  }
  if (state.user && hasEvents) followEvents(state.user.id === before ? after : undefined);
  resumeWrites(report);
  update({});
});

/** Returns the number of an order for customers: the last six characters of its id. */
export const shortId = (id) => id.slice(-6).toUpperCase();

/** Says something to screen readers. */
export function announce(text) {
  const region = document.getElementById("announcements");
  if (region) region.textContent = text;
}

// Writes. The shop knows a repeat by its key.

const cartLane = { lane: "cart", kind: "cart" };

export function addToCart(product_id, quantity) {
  const body = { product_id, quantity };
  return submit({ ...cartLane, id: `add-${product_id}-${quantity}`, method: "post", path: "/api/v1/cart/items", body });
}

export function setQuantity(product_id, quantity) {
  const params = { path: { product_id } };
  const path = "/api/v1/cart/items/{product_id}";
  // Each number is sent, also one that an earlier write under way has: the last one counts.
  return submit({ ...cartLane, id: `set-${product_id}-${newKey()}`, method: "put", path, params, body: { quantity } });
}

/** Orders the cart. The shop refuses if that costs something else than was shown. */
export function placeOrder(shipping_address, expected_total) {
  const body = { shipping_address, expected_total };
  return submit({ id: "order", kind: "order", lane: "cart", method: "post", path: "/api/v1/orders", body });
}

/** Takes a step of an order: `pay`, `cancel` or `complete`. */
export function takeStep(step, id, body) {
  const params = { path: { id } };
  return submit({ id: `${step}-${id}`, kind: "step", lane: id, method: "post", path: `/api/v1/orders/{id}/${step}`, params, body });
}

/** Sends a write of the queue. The shop takes a key with each write that is not idempotent by itself. */
export function sendWrite({ method, path, params, body, headers, key }) {
  const isKeyed = method === "post" || method === "patch";
  return client[method](path, { params, body, headers: isKeyed ? { ...headers, "Idempotency-Key": key } : headers });
}

export function start() {
  hasEvents = true;
  startWrites(sendWrite, {
    cart: (cart) => update({ cart }),
    order(order) {
      keepOrders([order]);
      loadCart().catch(reportUnlessTransient);
      go(`/shop/orders/${order.id}`);
    },
    step: (order) => keepOrders([order]),
  });
  retry(loadCategories).catch(reportUnlessTransient);
  if (state.user) followEvents();
  resumeWrites(report);
}

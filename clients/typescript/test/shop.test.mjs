// Against a running shop: SHOP is the address of a gateway, PRODUCT the id of a product with stock, ADMIN_TOKEN an access
// token of an admin.

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { test } from "node:test";
import WebSocket from "ws";
import { AllEvents } from "../dist/all_events.js";
import { ProblemError, Shoppee } from "../dist/index.js";
import { readEvents } from "../dist/sse.js";
import { Proxy } from "./proxy.mjs";

const url = process.env.SHOP;
const product_id = Number(process.env.PRODUCT);
const shipping_address = { recipient: "Ann", line1: "1 High Street", city: "Utrecht", postal_code: "3511", country: "NL" };
const password = "correct horse battery";

async function customer(options = {}) {
  const shop = new Shoppee({ url, ...options });
  const username = `client-${randomUUID().slice(0, 20)}`;
  await shop.post("/api/v1/auth/register", { body: { username, email: `${username}@example.com`, password } });
  await shop.signIn(username, password);
  return shop;
}

function order(shop, quantity = 1) {
  return shop.post("/api/v1/orders", { body: { items: [{ product_id, quantity }], shipping_address } });
}

/** Waits for a condition. */
async function until(holds, what) {
  const end = Date.now() + 30_000;
  while (!holds()) {
    assert.ok(Date.now() < end, `within 30 s: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

test("an order is placed, paid and listed", async () => {
  const shop = await customer();
  const placed = await order(shop, 2);
  assert.equal(placed.status, "pending");
  const path = { id: placed.id };
  const paid = await shop.post("/api/v1/orders/{id}/pay", { params: { path }, body: { payment_token: "tok_ok" } });
  assert.equal(paid.status, "paid");
  const { items } = await shop.get("/api/v1/orders", { params: { query: { status: "paid" } } });
  assert.deepEqual(items.map((one) => one.id), [placed.id]);
});

test("a problem is an error with its code and fields", async () => {
  const shop = await customer();
  await assert.rejects(order(shop, 0), (error) => {
    assert.ok(error instanceof ProblemError);
    assert.deepEqual([error.status, error.code], [422, "validation_failed"]);
    assert.equal(error.errors[0].field, "items[0].quantity");
    assert.ok(error.requestId);
    return true;
  });
});

test("a write whose answer is lost is sent again and happens once", async () => {
  const keys = [];
  const shop = await customer({
    fetch: async (request) => {
      const response = await fetch(request);
      if (request.method !== "POST" || !request.url.endsWith("/orders")) return response;
      keys.push(request.headers.get("idempotency-key"));
      if (keys.length === 1) throw new TypeError("the connection broke");
      assert.equal(response.headers.get("idempotent-replayed"), "true");
      return response;
    },
  });
  await order(shop);
  assert.equal(keys.length, 2);
  assert.ok(keys[0] && keys[0] === keys[1]);
  const { items } = await shop.get("/api/v1/orders");
  assert.equal(items.length, 1);
});

test("a device that signed in is named at its next sign-in", async () => {
  const [sent, kept] = [[], []];
  const options = {
    fetch(request) {
      if (request.url.endsWith("/login")) sent.push(request.headers.get("device-token"));
      return fetch(request);
    },
    onDeviceToken: (token) => kept.push(token),
  };
  const shop = await customer(options);
  const { username } = shop.tokens.user;
  await shop.signIn(username, password);
  await new Shoppee({ url, ...options, deviceToken: kept[1] }).signIn(username, password);
  assert.deepEqual(sent, [null, kept[0], kept[1]]);
  assert.ok(kept.length === 3 && kept[0]);
});

test("a token that ends is renewed once for all requests", async () => {
  let renewals = 0;
  let expired = false;
  const shop = await customer({
    fetch: async (request) => {
      if (request.url.endsWith("/auth/refresh")) {
        renewals += 1;
        expired = false;
      } else if (expired) {
        const problem = { status: 401, code: "token_expired", title: "", detail: "", type: "", request_id: "" };
        const headers = { "content-type": "application/problem+json" };
        return new Response(JSON.stringify(problem), { status: 401, headers });
      }
      return fetch(request);
    },
  });
  const first = shop.tokens.access_token;
  expired = true;
  await Promise.all([shop.get("/api/v1/auth/me"), shop.get("/api/v1/cart"), shop.get("/api/v1/orders")]);
  assert.equal(renewals, 1);
  assert.notEqual(shop.tokens.access_token, first);
  // Before its end it is renewed without a refusal.
  const tokens = { ...shop.tokens, expires_in: 10 };
  const kept = [];
  const later = new Shoppee({ url, tokens, onTokens: (given) => kept.push(given) });
  await later.get("/api/v1/auth/me");
  // Reported are the new tokens alone: those it began with are kept already, with their age.
  assert.deepEqual(kept, [later.tokens]);
  await later.signOut();
  assert.equal(later.tokens, undefined);
  assert.equal(kept.at(-1), undefined);
});

test("a session that has ended signs the client out", async () => {
  const shop = await customer();
  const { refresh_token } = shop.tokens;
  await shop.post("/api/v1/auth/logout");
  const later = new Shoppee({ url, tokens: { ...shop.tokens, refresh_token, expires_in: 0 } });
  await assert.rejects(later.get("/api/v1/auth/me"), (error) => error.status === 401);
  assert.equal(later.tokens, undefined);
});

test("a client whose session was ended elsewhere forgets it", async () => {
  const reports = [];
  const shop = await customer({ onTokens: (tokens) => reports.push(tokens) });
  const events = shop.events({ onOrder() {} }, { WebSocket });
  await until(() => events.state === "open", "the socket opens");
  const other = new Shoppee({ url, tokens: shop.tokens });
  await shop.post("/api/v1/auth/logout-all");
  await until(() => events.state === "closed", "the gateway knows that the session has ended");
  await other.signOut();
  assert.equal(other.tokens, undefined);
  await assert.rejects(shop.get("/api/v1/auth/me"), (error) => error.code === "session_revoked");
  assert.equal(shop.tokens, undefined);
  assert.equal(reports.at(-1), undefined);
});

test("a token of another shop is forgotten", async () => {
  const shop = new Shoppee({ url, tokens: { access_token: "of.another.shop", refresh_token: "", expires_in: 60 } });
  await assert.rejects(shop.get("/api/v1/auth/me"), (error) => error.code === "unauthenticated");
  assert.equal(shop.tokens, undefined);
});

test("events go on after the connection was killed, each once and in order", async () => {
  const shop = await customer();
  const proxy = new Proxy(new URL(url));
  await proxy.start();
  const through = new Shoppee({ url: proxy.url, tokens: shop.tokens });
  const frames = [];
  const states = [];
  const handlers = { onOrder: (frame) => frames.push(frame), onState: (state) => states.push(state) };
  const events = through.events(handlers, { WebSocket });
  await until(() => events.state === "open", "the socket opens");

  await order(shop);
  await until(() => frames.length === 1, "the first event");
  for (let round = 0; round < 3; round += 1) {
    const before = frames.length;
    await proxy.stop();
    await until(() => events.state === "waiting", "the loss is noticed");
    // While the client is away.
    await order(shop);
    await order(shop);
    await proxy.start();
    await until(() => frames.length === before + 2, "what was missed is replayed");
    await order(shop);
    await until(() => frames.length === before + 3, "and events arrive live");
  }
  assert.deepEqual(frames.map((frame) => frame.seq), Array.from({ length: 10 }, (_, at) => at + 1));
  assert.equal(frames[0].content.status, "pending");
  assert.deepEqual(states, ["open", "waiting", "open", "waiting", "open", "waiting", "open"]);

  // A later run goes on from a position.
  events.close();
  assert.equal(events.state, "closed");
  const replayed = [];
  const resumed = shop.events({ onOrder: (frame) => replayed.push(frame.seq) }, { WebSocket, after: 7 });
  await until(() => replayed.length === 3, "what came after the position");
  assert.deepEqual(replayed, [8, 9, 10]);
  resumed.close();
  await proxy.stop();
});

test("events that cannot be replayed are said to be missed", async () => {
  const shop = await customer();
  const resets = [];
  const events = shop.events({ onOrder() {}, onReset: (seq) => resets.push(seq) }, { WebSocket, after: 1_000 });
  await until(() => resets.length === 1, "the reset");
  assert.deepEqual([resets[0], events.seq], [0, 0]);
  events.close();
});

test("events end for good with their session", async () => {
  const shop = await customer();
  const errors = [];
  const events = shop.events({ onOrder() {}, onError: (error) => errors.push(error) }, { WebSocket });
  await until(() => events.state === "open", "the socket opens");
  await shop.signOut();
  await until(() => events.state === "closed", "the end");
  assert.match(errors[0].message, /4501/);
});

/** A client of the admin, whose stream goes over `through`. */
function admin(through = url) {
  return new Shoppee({ url: through, tokens: { access_token: process.env.ADMIN_TOKEN, refresh_token: "", expires_in: 3600 } });
}

test("a stream of all users' events resumes after the connection was killed, each once", async () => {
  const [ann, ben] = await Promise.all([customer(), customer()]);
  const proxy = new Proxy(new URL(url));
  await proxy.start();
  const steps = [];
  const states = [];
  const own = [ann, ben].map((shop) => shop.tokens.user.id);
  const handlers = {
    onOrder: ({ user_id, seq, content }) => own.includes(user_id) && steps.push([own.indexOf(user_id), seq, content.status]),
    onState: (state) => states.push(state),
    onReset: () => assert.fail("nothing was lost"),
  };
  const events = new AllEvents(admin(proxy.url), handlers);
  await until(() => events.cursor !== undefined, "the first position");
  const expected = [];
  for (let round = 1; round <= 3; round += 1) {
    await order(ann);
    expected.push([0, 2 * round - 1, "pending"]);
    await until(() => steps.length === expected.length, "an event arrives live");
    await proxy.stop();
    await until(() => events.state === "waiting", "the loss is noticed");
    await order(ben);
    await order(ann);
    expected.push([1, round, "pending"], [0, 2 * round, "pending"]);
    await proxy.start();
    await until(() => steps.length === expected.length, "the missed events are replayed");
  }
  assert.deepEqual(steps, expected);
  assert.deepEqual(states, ["open", "waiting", "open", "waiting", "open", "waiting", "open"]);

  // A later run goes on from a position, and sees one state alone.
  const { cursor } = events;
  events.close();
  assert.equal(events.state, "closed");
  const placed = await order(ben);
  await ben.post("/api/v1/orders/{id}/cancel", { params: { path: { id: placed.id } }, body: {} });
  const cancelled = [];
  const later = new AllEvents(admin(), { onOrder: ({ content }) => cancelled.push(content.order_id) }, { after: cursor, status: "cancelled" });
  await until(() => cancelled.includes(placed.id), "the event behind the position");
  later.close();
  await proxy.stop();
});

test("a stream that the shop refuses is closed with the reason", async () => {
  const errors = [];
  const refused = new AllEvents(await customer(), { onOrder() {}, onError: (error) => errors.push(error.code) });
  const misplaced = new AllEvents(admin(), { onOrder() {}, onError: (error) => errors.push(error.code) }, { after: "none" });
  await until(() => errors.length === 2, "both are refused");
  assert.deepEqual(errors.sort(), ["forbidden", "invalid_request"]);
  assert.deepEqual([refused.state, misplaced.state], ["closed", "closed"]);
});

test("blocks of a stream are found in chunks of any size", async () => {
  const text = ": sign of life\n\nretry: 2000\r\n\r\nid: 1\ndata: {\"a\":\"\u00e9\u2028\"}\n\ndata:one\rdata: two\rid\r\rid: 3\n\ndata: unfinished";
  const bytes = new TextEncoder().encode(text);
  for (const size of [1, 2, 3, 7, bytes.length]) {
    const body = new ReadableStream({
      start(controller) {
        for (let at = 0; at < bytes.length; at += size) controller.enqueue(bytes.slice(at, at + size));
        controller.close();
      },
    });
    const events = [];
    for await (const event of readEvents(body)) events.push(event);
    const expected = [{}, { retry: 2000 }, { id: "1", data: '{"a":"\u00e9\u2028"}' }, { data: "one\ntwo", id: "" }, { id: "3" }];
    assert.deepEqual(events, expected, `chunks of ${size} bytes`);
  }
});

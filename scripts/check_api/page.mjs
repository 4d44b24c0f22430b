// Tests the example page in Chromium as a customer, and asserts its content at each step: page.mjs FOLDER.
//
// SHOP is the address of a gateway, ADMIN_TOKEN an admin's access token, CHROMIUM the browser, NODE_TOOLS the folder of
// the packages. The page reaches the gateway through a proxy that can be disconnected. If a step fails, the page's text is
// printed, and a screenshot is in FOLDER.

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { extname, join, normalize } from "node:path";
import { pathToFileURL } from "node:url";
import { Proxy } from "../../clients/typescript/test/proxy.mjs";
import { launch, Page, until } from "./browser.mjs";

const folder = process.argv[2];
const { SHOP, ADMIN_TOKEN } = process.env;
const { Shoppee } = await import(pathToFileURL(join(folder, "node_modules/@shoppee/client/dist/index.js")));

/** The longest that all steps may take. Milliseconds. */
const RUN_TIMEOUT = 30_000;
/** Resolves to this machine in the browser alone; no page of it is allowed. */
const FOREIGN_HOST = "page.example";
const TYPES = { ".html": "text/html", ".js": "text/javascript", ".mjs": "text/javascript", ".css": "text/css" };
const PASSWORD = "a password for one run";

/** Serves the folder, as any static server does; the page is told where the shop is. Returns the port. */
async function serve(shop) {
  const server = createServer(async (request, response) => {
    const path = normalize(new URL(request.url, "http://localhost").pathname.replace(/\/$/, "/index.html"));
    try {
      const file = await readFile(join(folder, path));
      const isPage = path === "/index.html";
      const body = isPage ? String(file).replace("http://127.0.0.1:8080", shop) : file;
      response.writeHead(200, { "content-type": TYPES[extname(path)] ?? "text/plain" }).end(body);
    } catch {
      response.writeHead(404).end();
    }
  });
  await new Promise((resolve, reject) => server.once("error", reject).listen(0, "127.0.0.1", resolve));
  server.unref();
  return server.address().port;
}

/** The example page. */
class ExamplePage extends Page {
  /** Waits for the refusal that a step causes: its code and text on the page, and the browser's line of its status. */
  async isRefused(code, status, ...texts) {
    await this.shows(`#message[data-code=${code}]`, ...texts);
    await this.takesError(new RegExp(`status of ${status}`));
  }

  /** The events that are listed, the oldest first: number and text. */
  events() {
    return this.page.$$eval("#events li", (all) => all.reverse().map((one) => [one.value, one.textContent.split(" is ")[1]]));
  }
}

async function customerPath(view, proxy, admin, product) {
  const row = `#products li[data-id="${product.id}"]`;
  // The catalogue is public.
  await view.shows("#products li:nth-child(12)", "in stock", "€");
  await view.click("#more");
  await view.shows("#products li:nth-child(24)", "in stock");
  await view.fill("#search input", "茶杯");
  await view.click("#search button");
  await view.shows(row, "红色陶瓷茶杯", "€12.34", "3 in stock");
  await view.click(`${row} button`);
  await view.isRefused("unauthenticated", 401, "Please sign in.");

  // Registration and sign-in.
  const username = `page-${randomUUID().slice(0, 18)}`;
  await view.fill("#sign-in [name=username]", username);
  await view.fill("#sign-in [name=email]", `${username}@example.com`);
  await view.fill("#sign-in [name=password]", "short");
  await view.click("#sign-in [value=register]");
  await view.isRefused("validation_failed", 422, "password: ");
  await view.fill("#sign-in [name=password]", PASSWORD);
  await view.click("#sign-in [value=register]");
  await view.shows("#sign-out", username);
  await view.shows("#live", "open");
  await view.hides("#message");

  // An order by the cart of more than the stock.
  await view.fill(`${row} input`, "5");
  await view.click(`${row} button`);
  await view.shows("#cart", "5 × 红色陶瓷茶杯", "Order for €61.70");
  await view.click("#cart li:last-child button");
  await view.isRefused("out_of_stock", 409, `${product.sku}: 3 available, not 5`);
  await view.click("#cart li:first-child button");
  await view.hides("#cart li");

  // An order within the stock; a card that is declined, and one that is accepted.
  await view.fill(`${row} input`, "2");
  await view.click(`${row} button`);
  await view.shows("#cart", "2 × 红色陶瓷茶杯", "Order for €24.68");
  await view.click("#cart li:last-child button");
  await view.shows("#orders li", "€24.68", "pending");
  await view.hides("#cart li");
  await view.page.select("#card", "tok_declined");
  await view.click("#orders button");
  await view.isRefused("payment_declined", 402, "declined");
  await view.page.select("#card", "tok_ok");
  await view.click("#orders button");
  await view.shows("#orders li", "paid");
  await view.shows("#events li", "paid");
  await view.hides("#orders button");

  // The order changes while the gateway is disconnected, and again after the reconnect.
  const id = await view.page.$eval("#orders li", (order) => order.dataset.id);
  const path = { id };
  await proxy.stop();
  await view.shows("#live", "waiting");
  const body = { carrier: "PostNL", tracking_number: "3S1" };
  await admin.post("/api/v1/orders/{id}/ship", { params: { path }, body });
  await view.shows("#orders li", "paid");
  await proxy.start();
  await view.shows("#orders li", "shipped");
  await view.shows("#live", "open");
  assert.equal(new URL(view.sockets.at(-1)).search, "?after=2", "the socket resumes behind the last event");
  await admin.post("/api/v1/orders/{id}/complete", { params: { path } });
  await view.shows("#orders li", "completed");
  assert.deepEqual(await view.events(), [[1, "pending"], [2, "paid"], [3, "shipped"], [4, "completed"]]);
  view.forgetOutage();

  // An order without the cart. The session survives a reload, and ends on this page or elsewhere.
  await view.fill(`${row} input`, "1");
  await view.click(`${row} button:last-child`);
  await view.shows("#orders li:nth-child(2)", "completed");
  await view.shows("#events li", "pending");
  await view.page.reload();
  await view.shows("#sign-out", username);
  await view.shows("#orders li:nth-child(2)", "completed");
  await view.click("#sign-out button");
  await view.shows("#live", "closed");
  await view.hides("#orders li");
  await view.fill("#sign-in [name=username]", username);
  await view.fill("#sign-in [name=password]", PASSWORD);
  await view.click("#sign-in [value=sign-in]");
  await view.shows("#orders li:nth-child(2)", "completed");
  const elsewhere = new Shoppee({ url: SHOP });
  await elsewhere.signIn(username, PASSWORD);
  await elsewhere.post("/api/v1/auth/logout-all");
  await view.shows("#sign-in", "Sign in");
  await view.isRefused("session_revoked", 401, "Please sign in.");

  // The page fits the width of a telephone's screen.
  await view.page.setViewport({ width: 390, height: 844 });
  assert.equal(await view.page.evaluate(() => document.documentElement.scrollWidth), 390);
}

/** A page of an origin that is not allowed reads nothing, and gets no socket, not even with a good ticket. */
async function refusedOrigin(view) {
  await view.shows("#message[data-code=unreachable]", `CORS_ORIGINS does not list http://${FOREIGN_HOST}`);
  await view.takesError(/blocked by CORS policy: .*Access-Control-Allow-Origin/);
  const customer = new Shoppee({ url: SHOP });
  const username = `page-${randomUUID().slice(0, 18)}`;
  const body = { username, email: `${username}@example.com`, password: PASSWORD };
  await customer.post("/api/v1/auth/register", { body });
  await customer.signIn(username, PASSWORD);
  const { ticket } = await customer.post("/api/v1/auth/ws-ticket");
  const opened = await view.page.evaluate((url, protocols) => {
    const socket = new WebSocket(url, protocols);
    return new Promise((resolve) => {
      socket.onopen = () => resolve(true);
      socket.onclose = () => resolve(false);
    });
  }, `${SHOP.replace(/^http/, "ws")}/ws`, ["shoppee.v1", `ticket.${ticket}`]);
  assert.equal(opened, false, "a page that is not allowed got a socket");
  await view.takesError(/Unexpected response code: 403/);
}

async function main() {
  const proxy = new Proxy(new URL(SHOP));
  await proxy.start();
  const port = await serve(proxy.url);
  const admin = new Shoppee({ url: SHOP, tokens: { access_token: ADMIN_TOKEN, expires_in: 3600 } });
  const product = await admin.post("/api/v1/products", {
    body: { sku: `cup-${randomUUID().slice(0, 8)}`, name: "红色陶瓷茶杯", price: 1234, stock: 3 },
  });
  const isFound = async () => {
    const { items } = await admin.get("/api/v1/products/search", { params: { query: { q: "茶杯" } } });
    return items.some((one) => one.id === product.id);
  };
  await until(isFound, "the search finds the new product");

  const browser = await launch([`--host-resolver-rules=MAP ${FOREIGN_HOST} 127.0.0.1`, "--lang=en"]);
  let view;
  const check = async (host, steps) => {
    view = await ExamplePage.open(browser, `http://${host}:${port}/`);
    await steps(view);
  };
  try {
    await check("localhost", (view) => customerPath(view, proxy, admin, product));
    assert.deepEqual(view.errors, [], "errors on the console");
    await check(FOREIGN_HOST, refusedOrigin);
  } catch (error) {
    const shown = await view?.page.evaluate(() => document.body.innerText).catch(() => "nothing");
    console.error(`the page shows:\n${shown}\n\nerrors on its console: ${view?.errors.join("\n")}\n`);
    await view?.page.screenshot({ path: join(folder, "failed.png"), fullPage: true }).catch(() => {});
    throw error;
  } finally {
    await browser.close();
    await admin.delete("/api/v1/products/{id}", { params: { path: { id: product.id } } });
    await proxy.stop();
  }
}

const timer = setTimeout(() => {
  console.error(`the page is not done within ${RUN_TIMEOUT} ms`);
  process.exit(1);
}, RUN_TIMEOUT);
const start = Date.now();
await main();
clearTimeout(timer);
console.log(`in ${((Date.now() - start) / 1000).toFixed(1)} s an order was placed, paid and followed in Chromium`);

// The demonstration in Chromium: a flash sale and a delivery, while gateways are killed.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { Customer, PHONE, readMessages, runFile } from "./customer.mjs";

/** The longest that the sign-ins of 300 buyers, a sale or a delivery may take. Milliseconds. */
const PHASE_TIMEOUT = 45_000;
/** The section of the sale. */
const SALE = "section[aria-labelledby=sale]";
const { messages } = await readMessages("demo/messages");

/** Returns the address of the demonstration, and the servers that its page may use. */
export async function readDemo() {
  const { demo: url } = JSON.parse(await readFile(runFile, "utf8"));
  const [, port] = /#(\d+)\./.exec(url);
  return { url, servers: [new URL(url).origin, `http://127.0.0.1:${port}`] };
}

/** Waits until an element matches, which takes longer than a step. */
const comes = (visitor, selector) => visitor.page.waitForSelector(selector, { timeout: PHASE_TIMEOUT });

/** Kills a gateway by its button, and waits until the supervisor has started it again. */
async function kills(visitor, gateway) {
  const starts = Number(await visitor.page.$eval(`[data-gateway=${gateway}]`, ({ dataset }) => dataset.starts));
  await visitor.click(`[data-gateway=${gateway}] button`);
  return async () => {
    await comes(visitor, `[data-gateway=${gateway}][data-starts="${starts + 1}"][data-up=true]`);
  };
}

/** Sells 100 units to 300 buyers while a gateway is killed, and delivers an order to three devices while another is. */
export async function flashSale(visitor) {
  await comes(visitor, `${SALE} .primary:not([disabled])`);
  assert.equal(await visitor.page.evaluate(() => location.hash), "", "the token is not kept in the address");
  await visitor.isFine("ready");

  // The address is good once. A reload keeps the session.
  const { url, servers, messages: shop, viewport } = visitor;
  const late = await Customer.arrives(visitor.page.browser(), { language: "en", messages: shop, viewport, name: "late", url, servers });
  await late.isRefused(".notice", 401, messages.en["demo.refused"]);
  await late.isFine("refused");
  await late.page.close();
  await visitor.page.reload();
  await comes(visitor, `${SALE} .primary:not([disabled])`);

  await visitor.click(`${SALE} .primary`);
  await comes(visitor, '.sale[data-phase="running"]');
  const isBack = await kills(visitor, "gateway-2");
  await comes(visitor, '.sale[data-phase="done"]');
  await isBack();
  for (const [name, count] of Object.entries({ ordered: "100", refused_count: "200", left: "0", paid: "100" })) {
    await visitor.shows(`[data-counter=${name}]`, count);
  }
  await visitor.shows('.sale .verdict[data-state="fine"]', messages.en["demo.exact"]);
  await visitor.shows(".equation", "100 supplied", "0 available", "0 held", "100 sold");

  await visitor.click("section[aria-labelledby=delivery] .primary");
  await comes(visitor, '.device:nth-child(3)[data-frames="1"]');
  const isBackToo = await kills(visitor, "gateway-3");
  await comes(visitor, '.devices[data-phase="done"]');
  await isBackToo();
  const devices = await visitor.page.$$eval(".device", (all) => all.map((one) => one.querySelectorAll(".timeline li").length));
  assert.deepEqual(devices, [4, 4, 4]);
  await visitor.shows(".device:nth-child(3)", messages.en["demo.connected"], "came back once");
  await visitor.isFine("done");

  // The other language, at a telephone.
  await visitor.click(".language");
  await visitor.shows(".sale .verdict", messages.zh["demo.exact"]);
  await visitor.page.setViewport(PHONE);
  visitor.viewport = PHONE;
  await visitor.isFine("phone");
  await showsCommand(visitor);
}

/** The page of a shop with one gateway names the command that starts three. */
async function showsCommand(visitor) {
  await visitor.page.setRequestInterception(true);
  visitor.page.on("request", (request) => {
    if (!request.url().endsWith("/state")) return request.continue();
    const gateway = { name: "gateway-1", url: "http://127.0.0.1:8080", pid: 1, is_up: true, starts: 1 };
    const state = { gateways: [gateway], buyers: { ready: 0, total: 300, error: null }, sale: null, delivery: null };
    return request.respond({
      headers: { "access-control-allow-origin": "*", "access-control-allow-headers": "authorization" },
      contentType: "text/event-stream",
      body: request.method() === "OPTIONS" ? "" : `data: ${JSON.stringify(state)}\n\n`,
    });
  });
  await visitor.page.reload();
  await visitor.shows(".panel .command", "scripts/up --gateways 3");
}

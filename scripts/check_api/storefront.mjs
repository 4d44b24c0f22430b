// Tests the storefront in Chromium: storefront.mjs FOLDER RUN_FILE. Customers buy in English on a desktop and in Chinese on
// a telephone; an admin runs the shop; 300 buyers take part in a flash sale. Cards are declined, connections are lost,
// tokens end, and gateways are killed.
// Each view is tried by axe. An error on the console, a violation of the security policy and a request to another host
// fail the run.
//
// SHOP is the address of the gateway, ADMIN_TOKEN an admin's access token, CHROMIUM the browser, NODE_TOOLS the folder of
// the packages. FOLDER has the client in its node_modules, and gets the screenshots.

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { adminPath } from "./back_office.mjs";
import { launch, Page, until } from "./browser.mjs";
import { flashSale, readDemo } from "./flash_sale.mjs";
import { Customer, DESKTOP, folder, PASSWORD, PHONE, readMessages, runFile, Shoppee } from "./customer.mjs";

const { SHOP, ADMIN_TOKEN } = process.env;
const { en } = await readMessages("messages/en");
const { zh } = await readMessages("messages/zh");
const { messages: backOffice } = await readMessages("admin/messages");
const { messages: demonstration } = await readMessages("demo/messages");

/** The longest that all steps may take. Milliseconds. */
const RUN_TIMEOUT = 240_000;
/** The budgets of the first view. */
const MAX_SCRIPT_BYTES = 60 * 1024;
const MAX_FIRST_VIEW_TIME = 1_000;

/** Fails unless all catalogues have the same messages, apart from the words of the demo shop. */
function comparesMessages() {
  const names = (catalogue) => Object.keys(catalogue).filter((name) => !/^(word|category)\./.test(name)).sort();
  assert.deepEqual(names(zh), names(en));
  for (const { en, zh } of [backOffice, demonstration]) assert.deepEqual(names(zh), names(en));
}

/** Checks the budgets of the first view. Of three loads the fastest counts: other programs may delay one. */
async function firstView(customer) {
  let shown = Infinity;
  for (let loads = 0; loads < 3 && shown > MAX_FIRST_VIEW_TIME; loads += 1) {
    if (loads > 0) await customer.page.reload();
    await customer.shows(".card .picture");
    const paint = await customer.page.evaluate(() => performance.getEntriesByName("first-contentful-paint")[0].startTime);
    shown = Math.min(shown, paint);
  }
  assert.ok(shown <= MAX_FIRST_VIEW_TIME, `the first view took ${shown} ms`);
  const preloaded = await customer.page.$$eval("[rel=modulepreload], script[src]", (all) => all.map((one) => one.href || one.src));
  const urls = await customer.page.evaluate(() =>
    performance.getEntriesByType("resource").map(({ name }) => name).filter((name) => /\.m?js$/.test(name)),
  );
  assert.deepEqual([...new Set(urls)].sort(), preloaded.sort(), "the page preloads each module");
  const texts = await Promise.all([...new Set(urls)].map(async (url) => (await fetch(url)).text()));
  const bytes = texts.reduce((sum, text) => sum + gzipSync(text).length, 0);
  assert.ok(urls.length > 10 && bytes <= MAX_SCRIPT_BYTES, `${urls.length} scripts of ${bytes} bytes`);
  return `first view in ${Math.round(shown)} ms with ${Math.ceil(bytes / 1024)} KiB of script`;
}

/** Takes the picture of README.md: docs/storefront.webp. */
async function takePicture(browser) {
  const view = await Page.open(browser, SHOP, ({ page }) => page.setViewport({ width: 1100, height: 720 }));
  await view.shows(".card .picture");
  await view.page.waitForNetworkIdle({ idleTime: 200 });
  await view.page.screenshot({ path: join(folder, "storefront.webp"), type: "webp", quality: 80 });
  await view.page.close();
}

/** Buys in English at a desktop, with refusals of every kind on the way. */
async function desktopPath(ann, admin, product) {
  const params = { path: { id: product.id } };
  const adjust = (delta) => admin.post("/api/v1/products/{id}/stock", { params, body: { delta, reason: "counted" } });
  assert.equal(await ann.page.evaluate(() => document.documentElement.lang), "en-GB");
  const figures = await firstView(ann);
  await ann.isFine("home");

  // Categories, a search as it is typed, facets and sort.
  await ann.click(".chip[href$=kitchen]");
  await ann.shows(".chips [aria-current]", "Kitchen");
  await ann.isFine("category");
  await ann.page.type(".search input", product.name.slice(0, -2));
  await ann.shows(".card-name", product.name);
  await ann.page.select("[name=sort]", "price_desc");
  await ann.page.waitForFunction(() => location.search.includes("sort=price_desc"));
  await ann.goes("/shop?q=mug");
  await ann.shows(".facet small");
  await ann.click(".facet button");
  await ann.page.waitForFunction(() => location.search.includes("min_price"));
  await ann.shows(".facet [aria-pressed=true]");
  await ann.isFine("search");
  await ann.goes("/shop?q=xyzzyplugh");
  await ann.shows(".empty", en["catalogue.empty"]);

  // The stock changes on the open page. An item that was added without an account is in the cart after the registration.
  await ann.goes(`/shop/products/${product.id}`);
  await ann.shows(".product-stock", "12 in stock");
  await adjust(-9);
  await ann.shows(".product-stock", "Only 3 left");
  await ann.isFine("product");
  await ann.click(".product-buy .primary");
  await ann.isRefused(".notice", 401, en["error.unauthenticated"]);
  await ann.shows("h1", en["sign_in.title"]);
  await ann.isFine("sign-in");
  await ann.click(".narrow > p a");
  await ann.shows("h1", en["register.title"]);
  await ann.fill("[name=username]", ann.username);
  await ann.fill("[name=email]", `${ann.username}@example.com`);
  await ann.fill("[name=password]", "short");
  await ann.click(".form .primary");
  await ann.isRefused(".field-error", 422, en["invalid.password"]);
  await ann.isFine("register");
  await ann.fill("[name=password]", PASSWORD);
  await ann.click(".form .primary");
  await ann.shows("h1", product.name);
  await ann.shows(".badge", "1");

  // The cart, and an order that the shop refuses: more than the stock, then another price.
  await ann.click(".to-cart");
  await ann.shows(".line", product.name);
  await ann.click(".quantity button:last-child");
  await ann.shows(".total", "€24.68");
  await ann.isFine("cart");
  await ann.click(".panel .button");
  await ann.shows("h1", en["checkout.title"]);
  await ann.click(".form .primary");
  await ann.isRefused(".field-error", 422, en["invalid.recipient"]);
  assert.equal(await ann.focus(), "INPUT", "the focus is at the first wrong field");
  for (const [name, value] of Object.entries({ recipient: "Ann Lee", line1: "High Street 1", postal_code: "3511", city: "Utrecht" })) {
    await ann.fill(`[name=${name}]`, value);
  }
  await adjust(-2);
  await ann.click(".form .primary");
  await ann.isRefused(".form-error", 409, `${product.name}: only 1 left, and you want 2.`);
  await ann.isFine("checkout");
  await adjust(2);
  await admin.patch("/api/v1/products/{id}", { params, body: { price: 1300 } });
  await ann.click(".form .primary");
  await ann.isRefused(".form-error", 409, "€26.00");
  await ann.shows(".summary", "€26.00");
  await ann.click(".form .primary");
  const id = await ann.isOrdered();
  await ann.isAt("pending");
  await ann.isFine("order");

  // Two cards without success. Then the connection is lost, and the payment waits for it.
  await ann.click("[value=tok_insufficient_funds]");
  await ann.click(".form .primary");
  await ann.isRefused(".form-error", 402, en["error.declined.insufficient_funds"]);
  await ann.click("[value=tok_declined]");
  await ann.click(".form .primary");
  await ann.isRefused(".form-error", 402, en["error.declined.card_declined"]);
  await ann.isFine("declined");
  await ann.page.setOfflineMode(true);
  await ann.shows(".connection", en["live.offline"]);
  await ann.click("[value=tok_ok]");
  await ann.click(".form .primary");
  await ann.shows(".connection", "1 step waits");
  await ann.isFine("offline");
  await ann.page.setOfflineMode(false);
  await ann.isAt("paid");
  await ann.hides(".connection");
  ann.forgetOutage();

  // The token ends: the next request renews it. The gateway is killed: the step that was taken then follows.
  await ann.page.evaluate(() => {
    const saved = JSON.parse(localStorage.getItem("shoppee.session"));
    localStorage.setItem("shoppee.session", JSON.stringify({ ...saved, time: 0 }));
  });
  const renewal = ann.page.waitForResponse((response) => response.url().endsWith("/auth/refresh"));
  await ann.page.reload();
  assert.equal((await renewal).status(), 200);
  await ann.isAt("paid");
  await admin.post("/api/v1/orders/{id}/ship", { params: { path: { id } }, body: { carrier: "PostNL", tracking_number: "3S1" } });
  await ann.isAt("shipped");
  await ann.shows(".timeline", "3S1");
  const { gateways } = JSON.parse(await readFile(runFile, "utf8"));
  process.kill(gateways.at(-1).pid, "SIGKILL");
  await ann.click(".split .primary");
  await ann.isAt("completed");
  await ann.hides(".connection");
  ann.forgetOutage();
  const client = await ann.client();
  const { items } = await client.get("/api/v1/orders/{id}/events", { params: { path: { id } } });
  assert.deepEqual(items.map(({ status }) => status), ["pending", "paid", "shipped", "completed"]);
  await ann.isFine("completed");

  // The account: another device, and the end of all sessions, there and here.
  await ann.goes("/shop/orders");
  await ann.shows(".orders", "Received");
  await ann.isFine("orders");
  await ann.goes("/shop/account");
  await ann.shows(".sessions li:nth-child(2)");
  await ann.isFine("account");
  await ann.click(".danger");
  await ann.shows(".menu", en["nav.sign_in"]);
  await assert.rejects(client.get("/api/v1/auth/me"), { code: "session_revoked" });
  return figures;
}

/** Buys in Chinese at a telephone by the keyboard alone. The payment outlives a reload; the session ends elsewhere. */
async function phonePath(lin, admin, product) {
  assert.equal(await lin.page.evaluate(() => document.documentElement.lang), "zh-CN");
  await lin.shows(".card .picture");
  await lin.isFine("home");
  await lin.page.keyboard.press("Tab");
  await lin.shows(".skip:focus", zh.skip);
  await lin.page.keyboard.press("Enter");
  assert.equal(await lin.focus(), "MAIN");
  await lin.goes("/");
  await lin.shows(".card .picture");
  await lin.types(".search input", product.name.slice(0, -2));
  await lin.shows(".card-name", product.name);
  await lin.isFine("search");
  await lin.presses(`.card a[href$="/${product.id}"]`);
  await lin.shows(".product h1", product.name);
  assert.equal(await lin.focus(), "H1", "the focus is at the heading of the new view");
  await lin.isFine("product");
  await lin.presses(".menu a[href^='/shop/sign-in']");
  await lin.presses(".narrow > p a");
  await lin.shows("h1", zh["register.title"]);
  await lin.types("[name=username]", lin.username);
  await lin.types("[name=email]", `${lin.username}@example.com`);
  await lin.types("[name=password]", PASSWORD);
  await lin.page.keyboard.press("Enter");
  await lin.shows(".product h1", product.name);
  await lin.presses(".product-buy .primary");
  await lin.shows(".notice", zh["product.added"].split("{")[0]);
  await lin.presses(".to-cart");
  await lin.shows(".line", product.name);
  await lin.isFine("cart");
  await lin.presses(".panel .button");
  await lin.shows("h1", zh["checkout.title"]);
  for (const [name, value] of Object.entries({ recipient: "林晓", line1: "南京路 1 号", postal_code: "200001", city: "上海" })) {
    await lin.types(`[name=${name}]`, value);
  }
  await lin.isFine("checkout");
  await lin.presses(".form .primary");
  const id = await lin.isOrdered();
  await lin.isAt("pending");
  await lin.isFine("order");

  // The request of a payment is lost, and the page with it. The bank of the card takes three seconds.
  await lin.tabsTo("[value=tok_ok]");
  await lin.page.keyboard.press("ArrowDown");
  await lin.shows(".choice:has(:checked)", zh["card.tok_slow"]);
  await lin.page.setRequestInterception(true);
  const lose = (request) => (request.url().endsWith("/pay") ? request.abort() : request.continue());
  lin.page.on("request", lose);
  await lin.presses(".form .primary");
  await lin.shows(".connection", zh["live.unreachable"]);
  await lin.page.reload();
  await lin.shows(".connection", zh["live.unreachable"]);
  lin.page.off("request", lose);
  await lin.page.setRequestInterception(false);
  await lin.shows(".form .primary", zh["pay.busy"]);
  await lin.isFine("slow-card");
  await lin.isAt("paid");
  lin.forgetOutage();
  await admin.post("/api/v1/orders/{id}/ship", { params: { path: { id } }, body: { carrier: "SF", tracking_number: "SF100" } });
  await lin.isAt("shipped");
  await lin.isFine("shipped");
  const client = await lin.client();
  const { items } = await client.get("/api/v1/orders/{id}/events", { params: { path: { id } } });
  assert.deepEqual(items.map(({ status }) => status), ["pending", "paid", "shipped"]);

  // The session ends on another device.
  await client.post("/api/v1/auth/logout-all");
  await lin.isRefused(".notice", 401, zh["error.session_revoked"]);
  await lin.shows("h1", zh["sign_in.title"]);
  await lin.fill("[name=username]", lin.username);
  await lin.fill("[name=password]", "a wrong password");
  await lin.click(".form .primary");
  await lin.isRefused(".form-error", 401, zh["error.invalid_credentials"]);
  await lin.fill("[name=password]", PASSWORD);
  await lin.click(".form .primary");
  await lin.isAt("shipped");
  // The view asked for more than one thing when the session ended.
  lin.errors = lin.errors.filter((error) => !/status of 401/.test(error));

  // The other language, and the dark.
  await lin.click(".language");
  await lin.shows(".timeline", en["step.shipped"]);
  await lin.page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: "dark" }]);
  await lin.isFine("dark-order");
  await lin.goes("/");
  await lin.shows(".card .picture");
  await lin.isFine("dark-home");
}

async function main() {
  comparesMessages();
  const browser = await launch(["--lang=en"]);
  await takePicture(browser);
  const admin = new Shoppee({ url: SHOP, tokens: { access_token: ADMIN_TOKEN, expires_in: 3600 } });
  const { items } = await admin.get("/api/v1/categories", { params: { query: { limit: 100 } } });
  const newProduct = (stock) => {
    const tag = randomUUID().slice(0, 8);
    const name = `Alder Stoneware Mug, ${tag}`;
    const attributes = { brand: "Alder", material: "Stoneware", colour: "Sage" };
    const category_id = items.find(({ slug }) => slug === "tableware").id;
    return admin.post("/api/v1/products", { body: { sku: `mug-${tag}`, name, price: 1234, stock, category_id, attributes } });
  };
  const products = await Promise.all([newProduct(12), newProduct(7)]);
  const isFound = async ({ id, name }) => {
    const found = await admin.get("/api/v1/products/search", { params: { query: { q: name } } });
    return found.items.some((one) => one.id === id);
  };
  for (const product of products) await until(() => isFound(product), `the search finds ${product.name}`);

  const ann = { language: "en-GB,en", messages: en, viewport: DESKTOP, name: "desktop" };
  const lin = { language: "zh-CN,zh", messages: zh, viewport: PHONE, name: "phone" };
  const staff = { ...ann, name: "admin", url: `${SHOP}/admin` };
  let customer;
  const check = async (who, steps, product) => {
    customer = await Customer.arrives(browser, who);
    const figures = await steps(customer, admin, product);
    assert.deepEqual(customer.errors, [], "errors on the console");
    assert.deepEqual(customer.foreign, [], "requests to other hosts");
    return figures;
  };
  try {
    const figures = await check(ann, desktopPath, products[0]);
    await check(lin, phonePath, products[1]);
    await check(staff, adminPath, products[1]);
    await check({ ...ann, name: "demo", ...(await readDemo()) }, flashSale);
    return figures;
  } catch (error) {
    const shown = await customer?.page.evaluate(() => `${location}\n${document.body.innerText}`).catch(() => "nothing");
    console.error(`the page shows:\n${shown}\n\nerrors on its console: ${customer?.errors.join("\n")}\n`);
    await customer?.page.screenshot({ path: join(folder, "failed.png"), fullPage: true }).catch(() => {});
    throw error;
  } finally {
    await browser.close();
    // A failure here hides no other one.
    for (const { id } of products) await admin.delete("/api/v1/products/{id}", { params: { path: { id } } }).catch(console.error);
  }
}

const timer = setTimeout(() => {
  console.error(`the storefront is not done within ${RUN_TIMEOUT} ms`);
  process.exit(1);
}, RUN_TIMEOUT);
const start = Date.now();
const figures = await main();
clearTimeout(timer);
console.log(`in ${((Date.now() - start) / 1000).toFixed(1)} s two customers bought in two languages, an admin shipped, and a flash sale was exact; ${figures}`);

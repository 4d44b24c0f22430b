// The back office in Chromium, as its admin uses it.

import assert from "node:assert/strict";
import { readFile, writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { until } from "./browser.mjs";
import { folder, PASSWORD, PHONE, readMessages, runFile, Shoppee } from "./customer.mjs";

const { SHOP } = process.env;
const { messages } = await readMessages("admin/messages");
const { en } = messages;
/** A large file, and the bounds of its transfer: the time in milliseconds, and the memory of the page. */
const MANY_ROWS = 10_000;
const WRONG_ROWS = 300;
const MAX_TRANSFER_TIME = 60_000;
const MAX_TRANSFER_BYTES = 64 * 1024 * 1024;

/** Runs the shop in the back office: ships an order, moves a stock, changes products by a file, disables a user. */
export async function adminPath(staff, admin, product) {
  const { admin: account } = JSON.parse(await readFile(runFile, "utf8"));
  const customer = new Shoppee({ url: SHOP });
  const body = { username: staff.username, email: `${staff.username}@example.com`, password: PASSWORD };
  await customer.post("/api/v1/auth/register", { body });
  await customer.signIn(staff.username, PASSWORD);
  const shipping_address = { recipient: "Ann Lee", line1: "High Street 1", postal_code: "3511", city: "Utrecht", country: "NL" };
  const buy = () => customer.post("/api/v1/orders", { body: { items: [{ product_id: product.id, quantity: 1 }], shipping_address } });
  const pay = ({ id }) => customer.post("/api/v1/orders/{id}/pay", { params: { path: { id } }, body: { payment_token: "tok_ok" } });
  const order = await buy();
  await pay(order);

  await staff.fill("[name=username]", account.username);
  await staff.fill("[name=password]", account.password);
  await staff.click(".form .primary");
  const card = `[data-order="${order.id}"]`;
  await staff.shows(`.column:nth-child(2) ${card}`, product.name);
  await staff.isFine("orders");
  await staff.click(`${card} .primary`);
  await staff.fill(`${card} [name=carrier]`, "PostNL");
  await staff.fill(`${card} [name=tracking_number]`, "3S7");
  await staff.click(`${card} .form .primary`);
  await staff.shows(`.column:nth-child(3) ${card}`, "3S7");

  // Events move the board, also those of the time without a connection. It does not read its columns again.
  const reads = [];
  staff.page.on("request", (request) => request.url().includes("/admin/orders?") && reads.push(request.url()));
  const other = await buy();
  const moving = `[data-order="${other.id}"]`;
  await staff.shows(`.column:nth-child(1) ${moving}`, product.name);
  await staff.page.setOfflineMode(true);
  await staff.shows(".connection", staff.messages["live.offline"]);
  await pay(other);
  const params = { path: { id: other.id } };
  await admin.post("/api/v1/orders/{id}/ship", { params, body: { carrier: "PostNL", tracking_number: "3S8" } });
  await staff.page.setOfflineMode(false);
  await staff.shows(`.column:nth-child(3) ${moving}`, "3S8", product.name);
  assert.deepEqual(reads, []);
  staff.forgetOutage();

  await staff.goes("/admin/products");
  await staff.fill("[type=search]", product.name);
  await staff.shows(".row small", product.sku);
  const { stock } = await admin.get("/api/v1/products/{id}", { params: { path: { id: product.id } } });
  await staff.fill(".row [name=amount]", "30");
  await staff.click(".row-adjust button:nth-of-type(2)");
  await staff.shows(".row-stock", String(stock + 30));
  await staff.fill(".row [name=new_price]", "14.50");
  await staff.click(".row > button");
  await staff.shows(".notice", product.name);
  // The ledger of the stock: the chart, and the correction of a moment ago as its newest change.
  await staff.click(".row-stock");
  await staff.shows(".ledger .chart-line");
  await staff.click(".ledger .link");
  await staff.shows(".ledger tbody tr:first-child", "Correction", "+30", String(stock + 30));
  await staff.isFine("products");

  // A file of which one row names no product.
  await staff.goes("/admin/transfer");
  const file = join(folder, "import.csv");
  await writeFile(file, `sku,price,stock\r\n${product.sku},1500,5\r\n"no-such",1,1\r\n`);
  await (await staff.page.waitForSelector("[type=file]")).uploadFile(file);
  await staff.shows(".result", "2 rows: 1 changed, 1 failed.");
  await staff.shows(".failed tbody", "3", "no-such", "There is no such product.");
  await staff.isFine("transfer");
  const changed = await admin.get("/api/v1/products/{id}", { params: { path: { id: product.id } } });
  assert.deepEqual([changed.price, changed.stock], [1500, 5]);
  await importsMany(staff, admin);
  await keepsAccounts(staff);

  await staff.goes("/admin/status");
  await staff.shows('.verdict[data-state="fine"]', en["health.fine"]);
  // A line begins with the second sample.
  await staff.page.waitForFunction(() => [...document.querySelectorAll(".plots .chart-line")].some((line) => line.getAttribute("d").includes("L")));
  const figures = await staff.page.$$eval(".figures dl div", (all) => Object.fromEntries(all.map((one) => [one.children[0].textContent, one.children[1].textContent])));
  assert.ok(Number(figures[en["health.orders_last_hour"]]) >= 3, JSON.stringify(figures));
  assert.equal(figures[en["health.stock_violations"]], "0");
  await staff.isFine("status");

  // The audit log has the acts of this run, with their changes, and its filters.
  await staff.goes("/admin/audit");
  await staff.shows(".audit li:first-child", en["action.service_account.revoke"], account.username);
  await staff.isFine("audit");
  await staff.page.select("[name=action]", "product.update");
  await staff.fill("[name=target]", `product:${product.id}`);
  await staff.page.waitForFunction(() => document.querySelectorAll(".audit li").length === 1);
  await staff.shows(".audit li", en["action.product.update"], "price", "1234", "1450");
  await staff.isFine("audit-filters");
  await staff.fill("[name=target]", "product:1");
  await staff.shows(".audit + .hint", en["admin.none"]);

  await staff.goes("/admin/users");
  await staff.fill("[type=search]", staff.username);
  await staff.click(`[data-user="${staff.username}"] .danger`);
  await staff.shows(`[data-user="${staff.username}"]`, "disabled");
  await staff.isFine("users");
  await assert.rejects(customer.get("/api/v1/auth/me"), { code: "session_revoked" });
  await staff.page.setViewport(PHONE);
  staff.viewport = PHONE;
  const views = { "": ".order-card", "/products": ".row", "/transfer": "h1", "/users": "[data-user]", "/accounts": "[data-account]", "/audit": ".audit li", "/status": ".plots svg" };
  for (const [view, content] of Object.entries(views)) {
    await staff.goes(`/admin${view}`);
    await staff.shows(content);
    await staff.isFine(`phone${view.replace("/", "-")}`);
  }
}

/** Exports all products, and imports 10 000 of them with other prices and some wrong rows. */
async function importsMany(staff, admin) {
  await staff.devtools.send("Page.setDownloadBehavior", { behavior: "allow", downloadPath: resolve(folder) });
  await staff.goes("/admin/transfer");
  await staff.click(".panel button");
  const path = join(folder, "products.csv");
  const rows = async () => (await readFile(path, "utf8").catch(() => "")).trimEnd().split("\r\n");
  await until(async () => (await rows()).length > MANY_ROWS, "the export of all products", MAX_TRANSFER_TIME);
  const [head, ...exported] = await rows();
  assert.equal(head, "sku,name,price,stock,status,version");
  // Every 33rd row is wrong, in three ways in turn: no such product, another version, a price below zero.
  const breakings = [(fields) => (fields[0] = "no-such"), (fields) => (fields[5] = 999_999), (fields) => (fields[2] = -1)];
  const wrong = Math.floor(MANY_ROWS / WRONG_ROWS);
  const products = exported.slice(0, MANY_ROWS).map((row) => {
    const [, sku, price, stock, version] = /^([^,]+),.*,(\d+),(\d+),[a-z]+,(\d+)$/.exec(row);
    return { sku, price: Number(price), stock, version };
  });
  const changed = products.map(({ sku, price, stock, version }, at) => {
    const fields = [sku, "", price + 100, stock, "", version];
    if (at % wrong === 0 && at / wrong < WRONG_ROWS) breakings[(at / wrong) % 3](fields);
    return fields.join(",");
  });
  const file = join(folder, "many.csv");
  await writeFile(file, [head, ...changed].join("\r\n"));
  await staff.page.reload();
  const before = await memory(staff);
  const started = Date.now();
  await (await staff.page.waitForSelector("[type=file]")).uploadFile(file);
  await staff.shows("progress");
  await staff.page.waitForSelector(".result", { timeout: MAX_TRANSFER_TIME });
  await staff.shows(".result", `10,000 rows: ${(MANY_ROWS - WRONG_ROWS).toLocaleString("en")} changed, ${WRONG_ROWS} failed.`);
  const [seconds, bytes] = [(Date.now() - started) / 1000, (await memory(staff)) - before];
  assert.ok(bytes < MAX_TRANSFER_BYTES, `the import took ${bytes} bytes`);
  await staff.shows(".failed tbody", "no-such", en["row.not_found"], en["row.version_mismatch"], en["row.validation_failed"]);
  await staff.shows("table + .hint", "And 100 more.");
  const [, second] = products;
  const found = await admin.get("/api/v1/products/search", { params: { query: { q: second.sku } } });
  assert.equal(found.items.find(({ sku }) => sku === second.sku).price, second.price + 100);
  await staff.isFine("transfer-many");
  // The examples of the API document name the prices of the demo shop.
  const items = products.map(({ sku, price }) => ({ sku, price }));
  const restored = await admin.post("/api/v1/products/batch", { body: { on_error: "continue", items } });
  assert.equal(restored.failed, 0);
  console.log(`${MANY_ROWS} rows were imported in ${seconds.toFixed(1)} s with ${Math.ceil(bytes / 1024 / 1024)} MiB in the page`);
}

/** Returns the bytes of the page's objects, without garbage. */
async function memory(staff) {
  await staff.devtools.send("HeapProfiler.collectGarbage");
  return (await staff.page.metrics()).JSHeapUsedSize;
}

/** Creates a service account, copies its secret, renews it, and revokes it. */
async function keepsAccounts(staff) {
  await staff.page.browserContext().overridePermissions(SHOP, ["clipboard-read", "clipboard-sanitized-write"]);
  await staff.goes("/admin/accounts");
  await staff.fill("[name=name]", staff.username);
  await staff.click(".form .primary");
  await staff.isRefused(".field-error", 422, en["invalid.scopes"]);
  await staff.click('[value="orders:ship"]');
  await staff.page.select("[name=days]", "90");
  await staff.click(".form .primary");
  await staff.shows(".secret", staff.username);
  assert.equal(await staff.focus(), "H2", "the focus is at the secret");
  await staff.isFine("secret");
  const takeSecret = async () => {
    await staff.click(".secret .primary");
    await staff.shows(".secret .primary", en["accounts.copied"]);
    return staff.page.evaluate(() => navigator.clipboard.readText());
  };
  const account = `[data-account="${staff.username}"]`;
  const client_id = await staff.page.$eval(".secret dd", ({ textContent }) => textContent);
  const signIn = async (client_secret) => {
    const body = new URLSearchParams({ grant_type: "client_credentials", client_id, client_secret });
    return (await fetch(`${SHOP}/oauth/token`, { method: "POST", body })).status;
  };
  const first = await takeSecret();
  assert.equal(await signIn(first), 200);
  await staff.click(".secret button:last-child");
  await staff.hides(".secret");
  await staff.shows(account, "orders:ship", "ends");
  await staff.click(`${account} button`);
  await staff.shows(".secret");
  const second = await takeSecret();
  assert.notEqual(second, first);
  assert.deepEqual([await signIn(second), await signIn(first)], [200, 200], "both secrets are valid");
  await staff.page.reload();
  await staff.shows(account, "The previous secret is valid");
  await staff.hides(".secret");
  await staff.click(`${account} .danger`);
  await staff.shows(`${account} .danger`, en["accounts.confirm"]);
  await staff.click(`${account} .danger`);
  await staff.shows(account, en["accounts.revoked"]);
  await until(async () => (await signIn(second)) === 401, "the account has ended");
  await staff.isFine("accounts");
}

// A page of a Shoppee shop: the catalogue, a cart, payment, and orders that change live.

import { ProblemError, Shoppee } from "@shoppee/client";

const find = (id) => document.getElementById(id);

/** Makes an element. Text of the shop enters the page as text, never as HTML. */
function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** Formats an amount, which the shop gives in minor units of the currency. */
function money(amount, currency) {
  const format = new Intl.NumberFormat("en", { style: "currency", currency });
  return format.format(amount / 10 ** format.resolvedOptions().maximumFractionDigits);
}

// The session lasts as long as the tab, also over a reload.
const saved = JSON.parse(sessionStorage.getItem("session"));
const shop = new Shoppee({
  url: document.querySelector("meta[name=shop]").content,
  tokens: saved?.tokens,
  tokensAge: saved ? Date.now() - saved.time : 0,
  onTokens(tokens) {
    if (tokens) sessionStorage.setItem("session", JSON.stringify({ tokens, time: Date.now() }));
    else sessionStorage.removeItem("session");
  },
  deviceToken: localStorage.getItem("device") ?? undefined,
  onDeviceToken: (token) => localStorage.setItem("device", token),
});

// Errors. A page decides by `code`; which members stand beside it depends on the code.

function explain(error) {
  if (!(error instanceof ProblemError)) {
    console.error(error);
    return `${shop.url} does not answer: it is down, or its CORS_ORIGINS does not list ${location.origin}.`;
  }
  const { code, problem, errors, retryAfter, requestId } = error;
  switch (code) {
    case "unauthenticated":
    case "session_revoked":
      return "Please sign in.";
    case "invalid_request":
    case "validation_failed":
      return errors.map(({ field, message }) => `${field}: ${message}`).join("\n");
    case "out_of_stock":
      return problem.lines.map((line) => `${line.sku}: ${line.available} available, not ${line.requested}`).join("\n");
    case "payment_declined":
      return `The payment was declined: ${problem.decline_code}`;
    case "rate_limited":
    case "too_many_attempts":
      return `Too many requests. Please try again in ${retryAfter} s.`;
    default:
      return `${problem.title}: ${problem.detail} (${code}, request ${requestId})`;
  }
}

function show(text, code = "") {
  find("message").textContent = text;
  find("message").dataset.code = code;
  find("message").hidden = text === "";
}

function showError(error) {
  show(explain(error), error.code ?? "unreachable");
  showAccount();
}

/** Runs an action of the user. Its button is off meanwhile, so that a double click is one order. */
async function run(button, action) {
  show("");
  button.disabled = true;
  await action().catch(showError);
  button.disabled = false;
}

function actionButton(text, action) {
  const made = element("button", { type: "button", onclick: () => run(made, action) }, text);
  return made;
}

// The catalogue, which is open to all. A list comes in pages, which a cursor links.

let nextCursor;

async function loadProducts(cursor) {
  const q = find("search").elements.q.value.trim();
  const query = { limit: 12, cursor };
  const page = q
    ? await shop.get("/api/v1/products/search", { params: { query: { ...query, q } } })
    : await shop.get("/api/v1/products", { params: { query: { ...query, in_stock: true } } });
  const shown = cursor ? [...find("products").children] : [];
  find("products").replaceChildren(...shown, ...page.items.map(productRow));
  nextCursor = page.next_cursor;
  find("more").hidden = !nextCursor;
  if (!cursor && !page.items.length) find("products").append(element("li", {}, "Nothing is found."));
}

function productRow({ id, name, price, currency, stock }) {
  const quantity = element("input", { type: "number", min: 1, max: 1000, value: 1, ariaLabel: `Quantity of ${name}` });
  const item = () => ({ product_id: id, quantity: quantity.valueAsNumber });
  const add = async () => showCart(await shop.post("/api/v1/cart/items", { body: item() }));
  const order = () => placeOrder({ items: [item()], expected_total: price * item().quantity });
  const row = element("li", {}, element("strong", {}, name), element("span", {}, money(price, currency)));
  row.append(element("small", {}, `${stock} in stock`), quantity);
  row.append(actionButton("Add to cart", add), actionButton("Order now", order));
  row.dataset.id = id;
  return row;
}

// The cart and the orders of the signed-in user.

function showCart({ items, total, currency }) {
  const rows = items.map(({ product_id, name, quantity, line_total }) => {
    const params = { path: { product_id } };
    const remove = async () => showCart(await shop.delete("/api/v1/cart/items/{product_id}", { params }));
    const text = `${quantity} × ${name}, ${money(line_total, currency)}`;
    return element("li", {}, element("span", {}, text), actionButton("Remove", remove));
  });
  const order = actionButton(`Order for ${money(total, currency)}`, () => placeOrder({ expected_total: total }));
  if (rows.length) rows.push(element("li", {}, order));
  find("cart").replaceChildren(...rows);
}

/** Orders `items`, or the cart where there are none. The shop refuses if that costs something else than was shown. */
async function placeOrder(order) {
  const shipping_address = Object.fromEntries(new FormData(find("address")));
  keep([await shop.post("/api/v1/orders", { body: { ...order, shipping_address } })]);
  showCart(await shop.get("/api/v1/cart"));
}

/** The orders by id. REST and the events both tell of them: what has the higher version is newer. */
const orders = new Map();

function keep(told) {
  for (const order of told) {
    if (order.version > (orders.get(order.id)?.version ?? 0)) orders.set(order.id, order);
  }
  // An id begins with the time of its order.
  const newestFirst = [...orders.values()].sort((a, b) => (a.id < b.id ? 1 : -1));
  find("orders").replaceChildren(...newestFirst.map(orderRow));
}

function orderRow({ id, status, total, currency }) {
  const text = `…${id.slice(-6)}, ${money(total, currency)}: `;
  const row = element("li", {}, element("span", {}, text, element("strong", {}, status)));
  const params = { path: { id } };
  const body = () => ({ payment_token: find("card").value });
  const pay = async () => keep([await shop.post("/api/v1/orders/{id}/pay", { params, body: body() })]);
  if (status === "pending") row.append(actionButton("Pay", pay));
  row.dataset.id = id;
  return row;
}

async function loadMine() {
  keep((await shop.get("/api/v1/orders")).items);
  showCart(await shop.get("/api/v1/cart"));
}

// Live events. After a lost connection the client resumes behind the last `seq`: no event is missed or seen twice.

let events;

function follow() {
  let isFirst = true;
  events = shop.events({
    onState(state) {
      find("live").textContent = state;
      // What REST tells is read once the socket is open, so that nothing is missed between the two.
      if (state === "open" && isFirst) loadMine().catch(showError);
      isFirst &&= state !== "open";
    },
    onOrder({ seq, content: { order_id: id, ...order } }) {
      keep([{ id, ...order }]);
      find("events").prepend(element("li", { value: seq }, `…${id.slice(-6)} is ${order.status}`));
    },
    onReset: () => loadMine().catch(showError),
    // The events ended for good, as where the session did: the next call says so by its code.
    onError: () => loadMine().catch(showError),
  });
}

function stopFollowing() {
  events?.close();
  events = undefined;
}

// The account. It is shown as the tokens are, which also end where the shop ends the session.

function showAccount() {
  const user = shop.tokens?.user;
  find("sign-in").hidden = user !== undefined;
  find("sign-out").hidden = user === undefined;
  find("username").textContent = user?.username ?? "";
  if (user && !events) follow();
  if (user) return;
  stopFollowing();
  orders.clear();
  for (const id of ["orders", "events", "cart"]) find(id).replaceChildren();
}

function onSubmit(id, action) {
  find(id).onsubmit = (event) => {
    event.preventDefault();
    run(event.submitter, () => action(event.submitter.value, Object.fromEntries(new FormData(event.target))));
  };
}

onSubmit("search", () => loadProducts());
onSubmit("sign-in", async (step, { username, email, password }) => {
  if (step === "register") await shop.post("/api/v1/auth/register", { body: { username, email, password } });
  await shop.signIn(username, password);
  showAccount();
});
onSubmit("sign-out", async () => {
  // First, as the shop closes the socket of a session that has ended.
  stopFollowing();
  await shop.signOut();
  showAccount();
});
find("more").onclick = () => run(find("more"), () => loadProducts(nextCursor));
showAccount();
loadProducts().catch(showError);

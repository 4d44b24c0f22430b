// The orders of all customers as a board: a column for each state, and the steps that the shop takes.

import { ActionButton, Form, Title } from "../components.js";
import { html, useState } from "../html.js";
import { dateTime, money, t } from "../i18n.js";
import { client, report, shortId } from "../shop.js";
import { submit } from "../writes.js";
import { usePolling } from "./polling.js";

const COLUMNS = ["pending", "paid", "shipped", "completed", "cancelled"];
const COLUMN_SIZE = 25;
const POLL_INTERVAL = 2_000;

function readBoard() {
  const read = (status) => client.get("/api/v1/admin/orders", { params: { query: { status, limit: COLUMN_SIZE } } });
  return Promise.all(COLUMNS.map(read));
}

function takeStep(step, id, body) {
  const path = `/api/v1/orders/{id}/${step}`;
  return submit({ id: `${step}-${id}`, kind: "admin", lane: id, method: "post", path, params: { path: { id } }, body });
}

export function Orders() {
  const [board, refresh] = usePolling(readBoard, "orders", POLL_INTERVAL);
  return html`
    <${Title}>${t("admin.orders")}<//>
    <p class="hint live-dot">${t("order.live")}</p>
    <div class="board">
      ${COLUMNS.map((status, at) => html`<${Column} key=${status} status=${status} page=${board?.[at]} refresh=${refresh} />`)}
    </div>
  `;
}

function Column({ status, page, refresh }) {
  const { items = [], next_cursor } = page ?? {};
  return html`
    <section class="column" aria-labelledby="column-${status}">
      <h2 id="column-${status}">${t(`status.${status}`)} <small>${items.length}${next_cursor ? "+" : ""}</small></h2>
      <ul>${items.map((order) => html`<${Card} key=${order.id} order=${order} refresh=${refresh} />`)}</ul>
      ${page && !items.length && html`<p class="hint">${t("admin.none")}</p>`}
    </section>
  `;
}

function Card({ order, refresh }) {
  const { id, status, user_id, total, currency, items, created_at, shipment, shipping_address: address } = order;
  const [isShipping, setShipping] = useState(false);
  const step = (name, body) => async () => {
    await takeStep(name, id, body);
    refresh();
  };
  const name = t("order.title", { order: shortId(id) });
  return html`
    <li class="panel order-card" data-order=${id}>
      <p class="card-foot"><strong>${name}</strong> <strong>${money(total, currency)}</strong></p>
      <small>${dateTime(created_at)} · ${t("admin.customer", { id: user_id })}</small>
      <small>${items.map(({ quantity, name }) => `${quantity} × ${name}`).join(", ")}</small>
      <small>${address.recipient}, ${address.city} ${address.country}</small>
      ${shipment && html`<small>${t("order.tracking", { carrier: shipment.carrier, number: shipment.tracking_number })}</small>`}
      ${isShipping && status === "paid"
        ? html`<${ShipForm} name=${name} ship=${(body) => step("ship", body)()} />`
        : html`<p class="buttons">
            ${status === "paid" && html`<button type="button" class="primary" onClick=${() => setShipping(true)}>${t("admin.ship")}</button>`}
            ${status === "shipped" && html`<${ActionButton} action=${step("complete")} onError=${report}>${t("admin.complete")}<//>`}
            ${["pending", "paid"].includes(status) &&
            html`<${ActionButton} class="danger" action=${step("cancel", {})} onError=${report}>${t("order.cancel")}<//>`}
          </p>`}
    </li>
  `;
}

function ShipForm({ name, ship }) {
  return html`
    <${Form} onSubmit=${ship} button=${t("admin.ship")} class="form ship">
      <label><span>${t("admin.carrier")}</span><input name="carrier" required aria-label="${t("admin.carrier")}, ${name}" /></label>
      <label><span>${t("admin.tracking")}</span><input name="tracking_number" required aria-label="${t("admin.tracking")}, ${name}" /></label>
    <//>
  `;
}

// The orders of all customers as a board: a column for each state, and the steps that the shop takes.

import { ActionButton, Form, Title } from "../components.js";
import { html, useState } from "../html.js";
import { dateTime, money, t } from "../i18n.js";
import { report, shortId } from "../shop.js";
import { submit } from "../writes.js";
import { useBoard } from "./board.js";

function takeStep(step, id, body) {
  const path = `/api/v1/orders/{id}/${step}`;
  return submit({ id: `${step}-${id}`, kind: "admin", lane: id, method: "post", path, params: { path: { id } }, body });
}

export function Orders() {
  const [columns, keep] = useBoard();
  return html`
    <${Title}>${t("admin.orders")}<//>
    <p class="hint live-dot">${t("order.live")}</p>
    <div class="board">
      ${columns?.map((column) => html`<${Column} key=${column.status} ...${column} keep=${keep} />`)}
    </div>
  `;
}

function Column({ status, orders, isTruncated, keep }) {
  return html`
    <section class="column" aria-labelledby="column-${status}">
      <h2 id="column-${status}">${t(`status.${status}`)} <small>${orders.length}${isTruncated ? "+" : ""}</small></h2>
      <ul>${orders.map((order) => html`<${Card} key=${order.id} order=${order} keep=${keep} />`)}</ul>
      ${!orders.length && html`<p class="hint">${t("admin.none")}</p>`}
    </section>
  `;
}

function Card({ order, keep }) {
  const { id, status, user_id, total, currency, items, created_at, shipment, shipping_address: address } = order;
  const [isShipping, setShipping] = useState(false);
  const step = (name, body) => async () => keep(await takeStep(name, id, body));
  const name = t("order.title", { order: shortId(id) });
  // An order that only an event is known of has no lines yet.
  return html`
    <li class="panel order-card" data-order=${id}>
      <p class="card-foot"><strong>${name}</strong> <strong>${money(total, currency)}</strong></p>
      <small>${created_at && `${dateTime(created_at)} · `}${t("admin.customer", { id: user_id })}</small>
      ${items && html`<small>${items.map(({ quantity, name }) => `${quantity} × ${name}`).join(", ")}</small>`}
      ${address && html`<small>${address.recipient}, ${address.city} ${address.country}</small>`}
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

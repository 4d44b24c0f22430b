// The orders of the signed-in user. Their states move by themselves, by the live events.

import { SignInFirst, Title, useLoading } from "../components.js";
import { html } from "../html.js";
import { dateTime, money, t } from "../i18n.js";
import { loadOrders, shortId } from "../shop.js";
import { newestOrders, state } from "../store.js";

export function Status({ status }) {
  return html`<span class="status" data-status=${status}>${t(`status.${status}`)}</span>`;
}

export function Orders() {
  const { user } = state;
  useLoading(loadOrders, [user?.id]);
  if (!user) return html`<${SignInFirst} title=${t("orders.title")} text=${t("orders.sign_in")} />`;
  const orders = newestOrders();
  return html`
    <${Title}>${t("orders.title")}<//>
    ${orders.length === 0
      ? html`<p>${t("orders.empty")}</p><p><a class="button primary" href="/">${t("cart.browse")}</a></p>`
      : html`<p class="hint">${t("order.live")}</p>`}
    <ul class="orders">${orders.map((order) => html`<${Row} key=${order.id} order=${order} />`)}</ul>
  `;
}

function Row({ order }) {
  const { id, status, total, currency, items, created_at } = order;
  return html`
    <li>
      <a class="order-row" href="/shop/orders/${id}">
        <span>
          <strong>${t("order.title", { order: shortId(id) })}</strong>
          <small>${created_at && dateTime(created_at)}</small>
          ${items && html`<small class="clip">${items.map(({ quantity, name }) => `${quantity} × ${name}`).join(", ")}</small>`}
        </span>
        <${Status} status=${status} />
        <strong>${money(total, currency)}</strong>
      </a>
    </li>
  `;
}

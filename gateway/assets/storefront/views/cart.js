// The cart, with the prices of this moment.

import { ActionButton, Quantity, SignInFirst, Thumbnail, Title, useLoading } from "../components.js";
import { html } from "../html.js";
import { money, t } from "../i18n.js";
import { loadCart, report, setQuantity } from "../shop.js";
import { state } from "../store.js";

export function EmptyCart() {
  return html`
    <p>${t("cart.empty")}</p>
    <p><a class="button primary" href="/">${t("cart.browse")}</a></p>
  `;
}

export function Cart() {
  const { user, cart } = state;
  useLoading(loadCart, [user?.id]);
  if (!user) return html`<${SignInFirst} title=${t("cart.title")} text=${t("cart.sign_in")} />`;
  if (!cart) return html`<${Title}>${t("cart.title")}<//><p>${t("catalogue.loading")}</p>`;
  const { items, total, currency } = cart;
  if (!items.length) return html`<${Title}>${t("cart.title")}<//><${EmptyCart} />`;
  return html`
    <${Title}>${t("cart.title")}<//>
    <div class="split">
      <ul class="lines">${items.map((item) => html`<${Line} key=${item.product_id} item=${item} currency=${currency} />`)}</ul>
      <section class="panel" aria-label=${t("cart.total")}>
        <p class="total"><span>${t("cart.total")}</span> <strong>${money(total, currency)}</strong></p>
        <p><a class="button primary wide" href="/shop/checkout">${t("cart.checkout")}</a></p>
        <p class="hint">${t("checkout.hint")}</p>
      </section>
    </div>
  `;
}

function Line({ item, currency }) {
  const { product_id, name, quantity, unit_price, line_total, available } = item;
  const set = (next) => setQuantity(product_id, next).catch(report);
  return html`
    <li class="line">
      <${Thumbnail} id=${product_id} />
      <div class="line-text">
        <a href="/shop/products/${product_id}">${name}</a>
        <small>${t("cart.each", { price: money(unit_price, currency) })}</small>
        ${!available && html`<small class="stock none">${t("cart.unavailable")}</small>`}
        <span class="line-tools">
          <${Quantity} value=${quantity} label=${t("cart.quantity_of", { product: name })} onChange=${set} />
          <${ActionButton} class="link" action=${() => setQuantity(product_id, 0)} onError=${report} aria-label=${t("cart.remove_of", { product: name })}>
            ${t("cart.remove")}
          <//>
        </span>
      </div>
      <strong class="line-total">${money(line_total, currency)}</strong>
    </li>
  `;
}

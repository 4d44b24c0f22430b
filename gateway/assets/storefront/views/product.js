// A product: its picture, its price, and its stock, which moves while it is looked at.

import { ActionButton, Picture, Quantity, Stock, Title } from "../components.js";
import { html, useEffect, useState } from "../html.js";
import { categoryName, hasMessage, money, number, t, word } from "../i18n.js";
import { addToCart, loadProduct, report } from "../shop.js";
import { notify, state } from "../store.js";
import { isRetryable } from "../writes.js";

/** Between two looks at the stock. A response that did not change is a 304 without a body. Milliseconds. */
const POLL_INTERVAL = 2_000;

/** Reads the product again and again while the page is visible. Returns an error that does not pass by itself. */
function useLiveProduct(id) {
  const [error, setError] = useState();
  useEffect(() => {
    let timer;
    let isOver = false;
    const poll = async () => {
      clearTimeout(timer);
      if (!document.hidden && navigator.onLine) {
        await loadProduct(id).then(
          () => setError(undefined),
          (error) => isRetryable(error) || setError(error),
        );
      }
      // Of two polls that overlap, the later one sets the time of the next.
      clearTimeout(timer);
      if (!isOver) timer = setTimeout(poll, POLL_INTERVAL);
    };
    poll();
    document.addEventListener("visibilitychange", poll);
    return () => {
      isOver = true;
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", poll);
    };
  }, [id]);
  return error;
}

export function Product({ id }) {
  const error = useLiveProduct(id);
  const [quantity, setQuantity] = useState(1);
  const product = state.products.get(Number(id));
  if (error) {
    return html`
      <${Title}>${t("product.missing")}<//>
      <p><a class="button" href="/">${t("missing.home")}</a></p>
    `;
  }
  if (!product) return html`<${Title}>${t("catalogue.loading")}<//>`;
  const { name, description, price, currency, stock, category } = product;
  const add = async () => {
    await addToCart(product.id, quantity);
    notify(t("product.added", { product: name }));
  };
  return html`
    <article class="product">
      <div class="product-picture"><${Picture} product=${product} size=${640} eager /></div>
      <div class="product-text">
        ${category && html`<p class="eyebrow"><a href="/shop?category=${category.slug}">${categoryName(category)}</a></p>`}
        <${Title}>${name}<//>
        <p class="product-price">${money(price, currency)}</p>
        <p class="product-stock"><${Stock} stock=${stock} exact /> <small class="live-dot">${t("stock.live")}</small></p>
        <p>${description}</p>
        <div class="product-buy">
          <${Quantity} value=${quantity} max=${Math.max(stock, 1)} label=${t("product.quantity")} onChange=${setQuantity} />
          <${ActionButton} class="primary" action=${add} onError=${report} disabled=${stock === 0}>
            ${stock === 0 ? t("stock.sold_out") : t("product.add")}
          <//>
        </div>
        ${state.cart?.items.some(({ product_id }) => product_id === product.id) &&
        html`<p><a href="/shop/cart">${t("product.go_to_cart")}</a></p>`}
        <${Details} product=${product} />
      </div>
    </article>
  `;
}

function Details({ product }) {
  const { attributes, sku } = product;
  const rows = Object.entries(attributes ?? {}).filter(([, value]) => ["string", "number"].includes(typeof value));
  const shown = (name, value) => (name === "weight_g" ? `${number(value)} g` : word(String(value)));
  return html`
    <h2>${t("product.details")}</h2>
    <dl class="details">
      ${rows.map(
        ([name, value]) => html`<div>
          <dt>${hasMessage(`attribute.${name}`) ? t(`attribute.${name}`) : name}</dt>
          <dd>${shown(name, value)}</dd>
        </div>`,
      )}
      <div><dt>${t("product.sku")}</dt><dd>${sku}</dd></div>
    </dl>
  `;
}

// Products: search, price and name, and the stock with its reason.

import { ActionButton, Picture, Title } from "../components.js";
import { html, useRef, useState } from "../html.js";
import { number, parseMoney, t, typedMoney } from "../i18n.js";
import { client, report } from "../shop.js";
import { keepProducts, notify } from "../store.js";
import { newKey, submit } from "../writes.js";
import { Ledger } from "./ledger.js";
import { usePolling } from "./polling.js";

const PAGE_SIZE = 30;
const POLL_INTERVAL = 3_000;

async function readProducts(q) {
  const path = q ? "/api/v1/products/search" : "/api/v1/products";
  const page = await client.get(path, { params: { query: { limit: PAGE_SIZE, ...(q && { q }) } } });
  keepProducts(page.items);
  return page;
}

export function Products() {
  const [q, setQ] = useState("");
  const timer = useRef();
  const [page, refresh] = usePolling(() => readProducts(q), q, POLL_INTERVAL);
  const type = ({ target }) => {
    clearTimeout(timer.current);
    timer.current = setTimeout(() => setQ(target.value.trim()), 200);
  };
  return html`
    <${Title}>${t("admin.products")}<//>
    <p><input type="search" maxlength="200" aria-label=${t("search.label")} placeholder=${t("search.label")} onInput=${type} /></p>
    <ul class="rows">
      ${page?.items.map((product) => html`<${Row} key=${product.id} product=${product} refresh=${refresh} />`)}
    </ul>
    ${page && !page.items.length && html`<p class="hint">${t("catalogue.empty")}</p>`}
  `;
}

function Row({ product, refresh }) {
  const { id, name, sku, price, currency, stock, version } = product;
  const form = useRef();
  const [isLedgerShown, showLedger] = useState(false);
  const path = { id };
  const save = async () => {
    const { new_name, new_price } = Object.fromEntries(new FormData(form.current));
    const body = {};
    if (new_name.trim() !== name) body.name = new_name.trim();
    const amount = parseMoney(new_price, currency);
    if (amount === undefined) return notify(t("invalid.price"), "error");
    if (amount !== price) body.price = amount;
    if (!Object.keys(body).length) return notify(t("admin.unchanged"));
    // The shop compares the version alone.
    const headers = { "If-Match": `"${version}-0000000000000000"` };
    await submit({ id: `patch-${id}-${newKey()}`, kind: "admin", lane: `product-${id}`, method: "patch", path: "/api/v1/products/{id}", params: { path }, headers, body });
    notify(t("admin.saved", { product: name }));
    refresh();
  };
  const adjust = (sign) => async () => {
    const { amount, reason } = Object.fromEntries(new FormData(form.current));
    const body = { delta: sign * Math.trunc(Number(amount)), reason: reason.trim() || t("admin.counted") };
    await submit({ id: `stock-${id}-${newKey()}`, kind: "admin", lane: `product-${id}`, method: "post", path: "/api/v1/products/{id}/stock", params: { path }, body });
    refresh();
  };
  const label = (text) => `${text}, ${name}`;
  return html`
    <li>
      <form ref=${form} class="row" onSubmit=${(event) => event.preventDefault()}>
        <${Picture} product=${product} size=${64} />
        <span class="row-name"><input name="new_name" maxlength="200" aria-label=${label(t("admin.name"))} defaultValue=${name} /><small>${sku}</small></span>
        <input name="new_price" inputmode="decimal" aria-label=${label(t("filter.price"))} defaultValue=${typedMoney(price, currency)} />
        <${ActionButton} action=${save} onError=${report} aria-label=${label(t("admin.save"))}>${t("admin.save")}<//>
        <button type="button" class="row-stock link" data-stock=${stock} aria-expanded=${isLedgerShown} aria-label="${t("stock.count", { n: number(stock) })}, ${label(t("ledger.show"))}" onClick=${() => showLedger(!isLedgerShown)}>
          ${t("stock.count", { n: number(stock) })}
        </button>
        <span class="row-adjust">
          <${ActionButton} action=${adjust(-1)} onError=${report} aria-label=${label(t("admin.less"))}>−<//>
          <input name="amount" type="number" min="1" max="1000000000" aria-label=${label(t("product.quantity"))} defaultValue="1" />
          <${ActionButton} action=${adjust(1)} onError=${report} aria-label=${label(t("admin.more"))}>+<//>
          <input name="reason" maxlength="200" placeholder=${t("admin.reason")} aria-label=${label(t("admin.reason"))} />
        </span>
      </form>
      ${isLedgerShown && html`<${Ledger} product=${product} stock=${stock} />`}
    </li>
  `;
}

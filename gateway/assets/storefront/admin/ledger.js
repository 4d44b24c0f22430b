// The ledger of a product: its stock as a chart, and the last changes with their reasons.

import { html, useState } from "../html.js";
import { dateTime, hasMessage, number, t } from "../i18n.js";
import { client, shortId } from "../shop.js";
import { LineChart } from "./charts.js";
import { More, usePages } from "./pages.js";

const PAGE_SIZE = 50;

/** `stock` is the present one: a change of it reads the ledger again. */
export function Ledger({ product, stock }) {
  const path = { id: product.id };
  const read = (cursor) =>
    client.get("/api/v1/admin/products/{id}/stock-changes", { params: { path, query: { limit: PAGE_SIZE, cursor } } });
  const [isTable, setTable] = useState(false);
  const { items, more } = usePages(read, `${product.id} ${stock}`);
  const [shown, setShown] = useState();
  // The chart stays while the ledger is read again.
  if (items && items !== shown) setShown(items);
  const changes = items ?? shown;
  if (!changes) return html`<div class="ledger" aria-busy="true"></div>`;
  if (!changes.length) return html`<div class="ledger"><p class="hint">${t("admin.none")}</p></div>`;
  const points = changes.map(({ at, available }) => [Date.parse(at), available]).reverse();
  const from = points[0][0];
  const name = product.name;
  return html`
    <div class="ledger">
      <${LineChart}
        title=${t("ledger.title", { product: name })} isStepped series=${[{ points, tone: "good" }]} range=${[from, Date.now()]}
        format=${number} footer=${`${dateTime(from)} – ${t("ledger.now")}`}
      />
      <button type="button" class="link" aria-expanded=${isTable} onClick=${() => setTable(!isTable)}>${t("ledger.changes")}</button>
      ${isTable && html`<${Changes} changes=${changes} /><${More} more=${more} />`}
    </div>
  `;
}

function Changes({ changes }) {
  const kindName = (kind) => (hasMessage(`ledger.kind.${kind}`) ? t(`ledger.kind.${kind}`) : kind);
  return html`
    <div class="scroll" tabindex="0" role="region" aria-label=${t("ledger.changes")}>
      <table class="list">
        <thead><tr><th scope="col">${t("ledger.at")}</th><th scope="col">${t("ledger.change")}</th><th scope="col" class="number">±</th><th scope="col" class="number">${t("ledger.available")}</th></tr></thead>
        <tbody>
          ${changes.map(({ id, at, kind, quantity, available, order_id, reason }) => html`
            <tr key=${id}>
              <td>${dateTime(at)}</td>
              <td>${kindName(kind)}${order_id ? ` · ${t("order.title", { order: shortId(order_id) })}` : ""}${reason ? ` · ${reason}` : ""}</td>
              <td class="number">${quantity > 0 ? `+${number(quantity)}` : number(quantity)}</td>
              <td class="number">${number(available)}</td>
            </tr>
          `)}
        </tbody>
      </table>
    </div>
  `;
}

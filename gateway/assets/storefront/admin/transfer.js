// Import and export of products as CSV, by the batch route.

import { ActionButton, Title } from "../components.js";
import { html, useState } from "../html.js";
import { hasMessage, number, t } from "../i18n.js";
import { client, report } from "../shop.js";
import { notify } from "../store.js";
import { newKey, submit } from "../writes.js";
import { formatCsv, parseCsv } from "./csv.js";

const COLUMNS = ["sku", "name", "price", "stock", "status", "version"];
const NUMBERS = ["id", "price", "stock", "stock_delta", "category_id", "version"];
const KNOWN = [...NUMBERS, "sku", "name", "description", "status"];
const MAX_ROWS = 10_000;
/** Rows of one request: small enough for a progress that moves. */
const CHUNK_SIZE = 500;
const PAGE_SIZE = 100;

/** Reads all products, up to a number, and waits where the shop says so. */
async function readAll(onProgress) {
  const products = [];
  let cursor;
  do {
    try {
      const page = await client.get("/api/v1/products", { params: { query: { limit: PAGE_SIZE, sort: "name", cursor } } });
      products.push(...page.items);
      cursor = page.next_cursor ?? undefined;
      onProgress(products.length);
    } catch (error) {
      if (error.code !== "rate_limited") throw error;
      await new Promise((resolve) => setTimeout(resolve, (error.retryAfter ?? 1) * 1000));
    }
  } while (cursor !== undefined && products.length < MAX_ROWS);
  return products;
}

function save(name, text) {
  const url = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  Object.assign(document.createElement("a"), { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** Returns the items of a batch. Throws a sentence where the head of the file is wrong. */
function itemsOf(text) {
  const [head = [], ...rows] = parseCsv(text);
  const names = head.map((name) => name.trim().toLowerCase());
  const unknown = names.filter((name) => !KNOWN.includes(name));
  if (unknown.length) throw new SyntaxError(t("transfer.unknown", { names: unknown.join(", ") }));
  if (!names.includes("sku") && !names.includes("id")) throw new SyntaxError(t("transfer.no_key"));
  if (rows.length > MAX_ROWS) throw new SyntaxError(t("transfer.too_many", { n: number(MAX_ROWS) }));
  const value = (name, text) => {
    if (!NUMBERS.includes(name)) return text;
    if (!/^-?\d+$/.test(text)) throw new SyntaxError(t("transfer.no_number", { name, text }));
    return Number(text);
  };
  // An empty field stays as it is.
  return rows.map((fields) =>
    Object.fromEntries(names.map((name, at) => [name, fields[at]?.trim() ?? ""]).filter(([, text]) => text !== "").map(([name, text]) => [name, value(name, text)])),
  );
}

export function Transfer() {
  const [progress, setProgress] = useState();
  const [result, setResult] = useState();
  const exportAll = async () => {
    const products = await readAll((done) => setProgress({ done }));
    setProgress(undefined);
    save("products.csv", formatCsv([COLUMNS, ...products.map((product) => COLUMNS.map((name) => product[name]))]));
  };
  const importFile = async (file) => {
    setResult(undefined);
    notify("");
    let items;
    try {
      items = itemsOf(await file.text());
    } catch (error) {
      return notify(error.message, "error");
    }
    const failed = [];
    let updated = 0;
    try {
      for (let start = 0; start < items.length; start += CHUNK_SIZE) {
        setProgress({ done: start, all: items.length });
        const chunk = items.slice(start, start + CHUNK_SIZE);
        const body = { on_error: "continue", items: chunk };
        const done = await submit({ id: newKey(), kind: "admin", lane: "batch", method: "post", path: "/api/v1/products/batch", body });
        updated += done.updated;
        const wrong = done.results.filter(({ status }) => status === "failed");
        // The first line of the file is its head.
        failed.push(...wrong.map(({ index, error }) => ({ line: start + index + 2, key: chunk[index].sku ?? chunk[index].id, error })));
      }
      setResult({ all: items.length, updated, failed });
    } catch (error) {
      report(error);
    }
    setProgress(undefined);
  };
  return html`
    <${Title}>${t("admin.transfer")}<//>
    <section class="panel">
      <h2>${t("transfer.export")}</h2>
      <p class="hint">${t("transfer.export_hint")}</p>
      <${ActionButton} action=${exportAll} onError=${report}>${t("transfer.export")}<//>
    </section>
    <section class="panel">
      <h2>${t("transfer.import")}</h2>
      <p class="hint" id="import-hint">${t("transfer.import_hint", { n: number(MAX_ROWS) })}</p>
      <input type="file" name="file" accept=".csv,text/csv" aria-label=${t("transfer.import")} aria-describedby="import-hint" disabled=${Boolean(progress)}
        onChange=${({ target }) => target.files[0] && importFile(target.files[0]).finally(() => (target.value = ""))} />
    </section>
    <div role="status">
      ${progress && html`<p><label>${t("transfer.progress", { n: number(progress.done) })} <progress value=${progress.done} max=${progress.all ?? MAX_ROWS}></progress></label></p>`}
      ${result && html`<p class="result">${t("transfer.done", { all: number(result.all), updated: number(result.updated), failed: number(result.failed.length) })}</p>`}
    </div>
    ${result?.failed.length > 0 && html`<${Failed} rows=${result.failed} />`}
  `;
}

function Failed({ rows }) {
  const sentence = ({ code }) => (hasMessage(`row.${code}`) ? t(`row.${code}`) : hasMessage(`error.${code}`) ? t(`error.${code}`) : code);
  return html`
    <table class="failed">
      <caption class="hidden">${t("transfer.failed")}</caption>
      <thead><tr><th scope="col">${t("transfer.line")}</th><th scope="col">${t("product.sku")}</th><th scope="col">${t("transfer.reason")}</th></tr></thead>
      <tbody>${rows.map(({ line, key, error }) => html`<tr key=${line}><td>${line}</td><td>${key}</td><td>${sentence(error)}</td></tr>`)}</tbody>
    </table>
  `;
}

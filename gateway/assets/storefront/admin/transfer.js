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
/** The failed rows that the page shows. The file has all of them. */
const MAX_SHOWN_ROWS = 200;

/** Reads all products. Waits if the shop limits the rate. */
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
  } while (cursor !== undefined);
  return products;
}

function save(name, text) {
  const url = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  Object.assign(document.createElement("a"), { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** Removes the apostrophe that the export sets before a field that looks like a formula. */
const withoutGuard = (text) => text.replace(/^'(?=[=+\-@\t\r])/, "");

/** Returns the items of a batch, and the lines of the file on which they begin. Throws a sentence if the head is wrong. */
function parseItems(text) {
  const [head = { fields: [] }, ...rows] = parseCsv(text);
  const names = head.fields.map((name) => name.trim().toLowerCase());
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
  const item = ({ fields }) => {
    const texts = names.map((name, at) => [name, withoutGuard(fields[at]?.trim() ?? "")]).filter(([, text]) => text !== "");
    return Object.fromEntries(texts.map(([name, text]) => [name, value(name, text)]));
  };
  return { items: rows.map(item), lines: rows.map(({ line }) => line) };
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
    let items, lines;
    try {
      ({ items, lines } = parseItems(await file.text()));
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
        failed.push(...wrong.map(({ index, error }) => ({ line: lines[start + index], key: chunk[index].sku ?? chunk[index].id, error })));
      }
    } catch (error) {
      report(error);
    }
    // After an error the earlier batches count.
    setResult({ all: items.length, updated, failed });
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
      ${progress && html`<p><label>${t("transfer.progress", { n: number(progress.done) })} <progress value=${progress.all && progress.done} max=${progress.all}></progress></label></p>`}
      ${result && html`<p class="result">${t("transfer.done", { all: number(result.all), updated: number(result.updated), failed: number(result.failed.length) })}</p>`}
    </div>
    ${result?.failed.length > 0 && html`<${Failed} rows=${result.failed} />`}
  `;
}

function Failed({ rows }) {
  const sentence = ({ code }) => (hasMessage(`row.${code}`) ? t(`row.${code}`) : hasMessage(`error.${code}`) ? t(`error.${code}`) : code);
  const saveAll = () => save("failed.csv", formatCsv([["line", "product", "code"], ...rows.map(({ line, key, error }) => [line, key, error.code])]));
  const hidden = rows.length - MAX_SHOWN_ROWS;
  return html`
    <table class="failed">
      <caption class="hidden">${t("transfer.failed")}</caption>
      <thead><tr><th scope="col">${t("transfer.line")}</th><th scope="col">${t("product.sku")}</th><th scope="col">${t("transfer.reason")}</th></tr></thead>
      <tbody>${rows.slice(0, MAX_SHOWN_ROWS).map(({ line, key, error }) => html`<tr key=${line}><td>${line}</td><td>${key}</td><td>${sentence(error)}</td></tr>`)}</tbody>
    </table>
    ${hidden > 0 && html`<p class="hint">${t("transfer.more_failed", { n: number(hidden) })}</p>`}
    <p><button type="button" onClick=${saveAll}>${t("transfer.save_failed")}</button></p>
  `;
}

// The audit log: the acts of admins and services, the newest first.

import { Title } from "../components.js";
import { html, useRef, useState } from "../html.js";
import { dateTime, hasMessage, t } from "../i18n.js";
import { client } from "../shop.js";
import { More, usePages } from "./pages.js";

const PAGE_SIZE = 50;
/** The delay after the last key before a filter is applied. Milliseconds. */
const TYPING_DELAY = 300;
/** The acts that the filter offers. The log may have others, of a newer service. */
const ACTIONS = [
  "order.ship", "order.complete", "order.cancel", "product.create", "product.update", "product.archive", "product.batch_update", "stock.adjust",
  "category.create", "category.update", "category.delete", "user.create", "user.update", "service_account.create", "service_account.rotate", "service_account.revoke",
];
/** Forms of the filters, which the shop refuses otherwise: a word, a colon and an id. */
const SUBJECT = /^[a-z_]+:\S+$/;

const actionName = (action) => (hasMessage(`action.${action}`) ? t(`action.${action}`) : action);

export function Audit() {
  const [filters, setFilters] = useState({});
  const timer = useRef();
  const set = (name, value) => setFilters((now) => ({ ...now, [name]: value || undefined }));
  const type = (name) => ({ target }) => {
    clearTimeout(timer.current);
    const value = target.value.trim();
    // An unfinished text is no filter yet.
    if (value === "" || SUBJECT.test(value)) timer.current = setTimeout(() => set(name, value), TYPING_DELAY);
  };
  const setSince = ({ target }) => set("since", target.value && new Date(target.value).toISOString());
  const read = (cursor) => client.get("/api/v1/admin/audit", { params: { query: { limit: PAGE_SIZE, cursor, ...filters } } });
  const { items, more } = usePages(read, JSON.stringify(filters));
  return html`
    <${Title}>${t("admin.audit")}<//>
    <form class="audit-filters" role="search" onSubmit=${(event) => event.preventDefault()}>
      <label><span>${t("audit.action")}</span>
        <select name="action" onChange=${({ target }) => set("action", target.value)}>
          <option value="">${t("catalogue.all")}</option>
          ${ACTIONS.map((action) => html`<option value=${action}>${actionName(action)}</option>`)}
        </select>
      </label>
      <label><span>${t("audit.actor")}</span><input name="actor" placeholder="admin:1" spellcheck=${false} autocapitalize="none" onInput=${type("actor")} /></label>
      <label><span>${t("audit.target")}</span><input name="target" placeholder="product:42" spellcheck=${false} autocapitalize="none" onInput=${type("target")} /></label>
      <label><span>${t("audit.since")}</span><input name="since" type="datetime-local" onChange=${setSince} /></label>
    </form>
    <ol class="audit" aria-busy=${!items}>
      ${items?.map((record) => html`<${Row} key=${record.id} record=${record} />`)}
    </ol>
    ${items && !items.length && !more && html`<p class="hint">${t("admin.none")}</p>`}
    <${More} more=${more} />
  `;
}

function Row({ record }) {
  const { at, service, actor, action, target, before, after, request_id } = record;
  const changes = [...new Set([...Object.keys(before ?? {}), ...Object.keys(after ?? {})])];
  const kind = hasMessage(`audit.kind.${actor.kind}`) ? t(`audit.kind.${actor.kind}`) : actor.kind;
  return html`
    <li>
      <p class="card-foot"><strong>${actionName(action)}</strong> <small><time datetime=${at}>${dateTime(at, "medium")}</time></small></p>
      <p>
        ${kind} <strong>${actor.name ?? actor.id}</strong> <small><code>${actor.kind}:${actor.id}</code></small>
        <span aria-hidden="true"> → </span><code>${target.kind}:${target.id}</code>
      </p>
      ${changes.length > 0 &&
      html`<dl class="changes">
        ${changes.map((name) => html`
          <div><dt>${name}</dt><dd>${before && name in before && html`<del>${show(before[name])}</del>`} ${after && name in after && html`<ins>${show(after[name])}</ins>`}</dd></div>
        `)}
      </dl>`}
      <small>${service}${request_id && html` · ${t("audit.request")} <code>${request_id}</code>`}</small>
    </li>
  `;
}

const show = (value) => (typeof value === "string" ? value : JSON.stringify(value));

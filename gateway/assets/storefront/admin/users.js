// Users: search, roles, and disabled accounts. A change ends the sessions of the user.

import { ActionButton, Title } from "../components.js";
import { html, useRef, useState } from "../html.js";
import { dateTime, t } from "../i18n.js";
import { client, report } from "../shop.js";
import { notify, state } from "../store.js";
import { submit } from "../writes.js";
import { usePolling } from "./polling.js";

const PAGE_SIZE = 50;
const POLL_INTERVAL = 5_000;

export function Users() {
  const [q, setQ] = useState("");
  const [role, setRole] = useState("");
  const timer = useRef();
  const query = { limit: PAGE_SIZE, ...(q && { q }), ...(role && { role }) };
  const [page, refresh] = usePolling(() => client.get("/api/v1/admin/users", { params: { query } }), `${role} ${q}`, POLL_INTERVAL);
  const type = ({ target }) => {
    clearTimeout(timer.current);
    timer.current = setTimeout(() => setQ(target.value.trim()), 200);
  };
  const change = (user, body) => async () => {
    const params = { path: { id: user.id } };
    await submit({ id: `user-${user.id}`, kind: "admin", lane: `user-${user.id}`, method: "patch", path: "/api/v1/admin/users/{id}", params, body });
    notify(t("admin.saved", { product: user.username }));
    refresh();
  };
  return html`
    <${Title}>${t("admin.users")}<//>
    <div class="tools">
      <input type="search" maxlength="254" aria-label=${t("admin.find_user")} placeholder=${t("admin.find_user")} onInput=${type} />
      <select aria-label=${t("admin.role")} value=${role} onChange=${({ target }) => setRole(target.value)}>
        <option value="">${t("catalogue.all")}</option>
        <option value="user">${t("role.user")}</option>
        <option value="admin">${t("role.admin")}</option>
      </select>
    </div>
    <ul class="sessions">
      ${page?.items.map((user) => html`<${Row} key=${user.id} user=${user} change=${change} />`)}
    </ul>
  `;
}

function Row({ user, change }) {
  const { id, username, email, role, disabled, created_at } = user;
  const isSelf = id === state.user.id;
  const label = (text) => `${text}, ${username}`;
  const other = role === "admin" ? "user" : "admin";
  const button = (name, body, className) => html`
    <${ActionButton} class=${className} action=${change(user, body)} onError=${report} aria-label=${label(t(name))}>${t(name)}<//>
  `;
  return html`
    <li data-user=${username}>
      <span>
        <strong>${username} ${role === "admin" && html`<span class="status">${t("role.admin")}</span>`} ${disabled && html`<span class="status" data-status="cancelled">${t("admin.disabled")}</span>`}</strong>
        <small>${email} · ${dateTime(created_at)}</small>
      </span>
      ${!isSelf &&
      html`<span class="buttons">
        ${button(`admin.make_${other}`, { role: other })}
        ${button(disabled ? "admin.enable" : "admin.disable", { disabled: !disabled }, disabled ? "" : "danger")}
      </span>`}
    </li>
  `;
}

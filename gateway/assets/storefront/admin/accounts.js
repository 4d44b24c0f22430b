// Service accounts: the identities of programs. A secret is shown once, after the creation or the rotation.

import { ActionButton, Field, Form, Title } from "../components.js";
import { html, useEffect, useRef, useState } from "../html.js";
import { dateTime, t } from "../i18n.js";
import { announce, client, report } from "../shop.js";
import { notify, state, update } from "../store.js";
import { newKey, submit } from "../writes.js";
import { More, usePages } from "./pages.js";

const PAGE_SIZE = 50;
const PATH = "/api/v1/admin/service-accounts";
/** The order of the form; the shop refuses an unknown scope. */
const SCOPES = ["orders:read", "orders:ship", "orders:cancel", "events:watch", "catalogue:write", "stock:adjust", "stock:hold", "users:read"];
/** The lifetimes that the form offers; without one the account has no end. Days. */
const LIFETIMES = [30, 90, 365];
const SECONDS_PER_DAY = 86_400;

/** Shows the secret of a response. It is the handler of these writes, so that a secret outlives a lost response. */
export function keepSecret({ name, id, client_secret }) {
  update({ secret: { name, id, client_secret } });
}

export function Accounts() {
  const { items, more, refresh } = usePages((cursor) => client.get(PATH, { params: { query: { limit: PAGE_SIZE, cursor } } }), "accounts");
  useEffect(() => () => update({ secret: undefined }), []);
  // The list has the account of each secret, also of one whose response arrives after a reload.
  useEffect(() => {
    if (state.secret) refresh();
  }, [state.secret]);
  const send = (write) => submit({ id: `account-${newKey()}`, lane: "accounts", ...write });
  return html`
    <${Title}>${t("admin.accounts")}<//>
    <p class="hint">${t("accounts.hint")} <a href="/docs">${t("footer.api")}</a></p>
    ${state.secret && html`<${Secret} key=${state.secret.client_secret} ...${state.secret} />`}
    <section class="panel">
      <h2>${t("accounts.new")}</h2>
      <${NewAccount} create=${(body) => send({ kind: "secret", method: "post", path: PATH, body })} />
    </section>
    <ul class="sessions">
      ${items?.map((account) => html`<${Row} key=${account.id} account=${account} send=${send} refresh=${refresh} />`)}
    </ul>
    ${items && !items.length && html`<p class="hint">${t("admin.none")}</p>`}
    <${More} more=${more} />
  `;
}

function NewAccount({ create }) {
  const [created, setCreated] = useState(0);
  const fieldset = useRef();
  const onSubmit = async ({ name, days }) => {
    const scopes = [...fieldset.current.querySelectorAll(":checked")].map(({ value }) => value);
    await create({ name: name.trim(), scopes, ...(days && { expires_in: Number(days) * SECONDS_PER_DAY }) });
    setCreated((count) => count + 1);
  };
  // A new form after each account.
  return html`
    <${Form} key=${created} onSubmit=${onSubmit} button=${t("accounts.create")}>
      ${(wrong) => html`
        <div class="account-fields">
          <${Field} name="name" label=${t("admin.name")} hint=${t("accounts.name_hint")} error=${wrong.name} maxlength="64" autocomplete="off" spellcheck=${false} required />
          <${Field} name="days" label=${t("accounts.lifetime")} error=${wrong.expires_in}>
            ${(control) => html`
              <select ...${control}>
                <option value="">${t("accounts.endless")}</option>
                ${LIFETIMES.map((days) => html`<option value=${days}>${t("accounts.days", { n: days })}</option>`)}
              </select>
            `}
          <//>
        </div>
        <fieldset class="scopes" ref=${fieldset} aria-describedby=${wrong.scopes ? "scopes-error" : undefined}>
          <legend>${t("accounts.scopes")}</legend>
          ${SCOPES.map((scope) => html`
            <label class="check"><input type="checkbox" value=${scope} aria-invalid=${wrong.scopes ? "true" : undefined} /><span><code>${scope}</code> <small>${t(`scope.${scope}`)}</small></span></label>
          `)}
          ${wrong.scopes && html`<p id="scopes-error" class="field-error">${wrong.scopes}</p>`}
        </fieldset>
      `}
    <//>
  `;
}

/** A secret, with a button that copies it. */
function Secret({ name, id, client_secret }) {
  const input = useRef();
  const heading = useRef();
  useEffect(() => heading.current.focus(), []);
  const copy = async () => {
    input.current.select();
    // A page without TLS has no clipboard: the text is selected.
    await navigator.clipboard?.writeText(client_secret);
    announce(t("accounts.copied"));
    setCopied(true);
  };
  const [isCopied, setCopied] = useState(false);
  return html`
    <section class="panel secret" aria-labelledby="secret-title">
      <h2 id="secret-title" tabindex="-1" ref=${heading}>${t("accounts.secret", { name })}</h2>
      <p>${t("accounts.secret_hint")}</p>
      <dl class="details">
        <div><dt>client_id</dt><dd><code>${id}</code></dd></div>
      </dl>
      <div class="tools">
        <input class="code" readonly ref=${input} aria-label="client_secret" value=${client_secret} onFocus=${({ target }) => target.select()} />
        <${ActionButton} class="primary" action=${copy} onError=${() => input.current.select()}>${isCopied ? t("accounts.copied") : t("accounts.copy")}<//>
        <button type="button" onClick=${() => update({ secret: undefined })}>${t("accounts.done")}</button>
      </div>
    </section>
  `;
}

function Row({ account, send, refresh }) {
  const { id, name, scopes, created_at, expires_at, last_used_at, previous_secret_expires_at, revoked_at } = account;
  const hasEnded = Boolean(revoked_at) || (expires_at && Date.parse(expires_at) < Date.now());
  const isRotating = previous_secret_expires_at && Date.parse(previous_secret_expires_at) > Date.now();
  const params = { path: { id } };
  const rotate = () => send({ kind: "secret", method: "post", path: `${PATH}/{id}/rotate`, params });
  const revoke = async () => {
    await send({ kind: "admin", method: "delete", path: `${PATH}/{id}`, params });
    notify(t("accounts.revoked_now", { name }));
    refresh();
  };
  return html`
    <li data-account=${name}>
      <span>
        <strong>${name} ${hasEnded && html`<span class="status" data-status="cancelled">${t(revoked_at ? "accounts.revoked" : "accounts.expired")}</span>`}</strong>
        <small><code>${id}</code></small>
        <small>${scopes.map((scope) => html`<code>${scope}</code> `)}</small>
        <small>${t("accounts.created", { at: dateTime(created_at) })} · ${last_used_at ? t("accounts.used", { at: dateTime(last_used_at) }) : t("accounts.unused")}${
          expires_at ? ` · ${t("accounts.expires", { at: dateTime(expires_at) })}` : ""
        }</small>
        ${isRotating && !revoked_at && html`<small>${t("accounts.previous", { at: dateTime(previous_secret_expires_at) })}</small>`}
      </span>
      ${!hasEnded &&
      html`<span class="buttons">
        <${ActionButton} action=${rotate} onError=${report} aria-label="${t("accounts.rotate")}, ${name}">${t("accounts.rotate")}<//>
        <${ConfirmButton} action=${revoke} label=${t("accounts.revoke")} question=${t("accounts.confirm")} name=${name} />
      </span>`}
    </li>
  `;
}

/** A button that asks once more, for what cannot be undone. */
function ConfirmButton({ action, label, question, name }) {
  const [isAsking, setAsking] = useState(false);
  const run = async () => {
    if (isAsking) await action();
    setAsking(!isAsking);
  };
  const text = isAsking ? question : label;
  return html`
    <${ActionButton} class="danger" action=${run} onError=${report} onBlur=${() => setAsking(false)} aria-label="${text}, ${name}">${text}<//>
  `;
}

// The account: sign-in, registration, and the devices that are signed in.

import { ActionButton, Field, Form, SignInFirst, Title, useLoading } from "../components.js";
import { html, useState } from "../html.js";
import { dateTime, t } from "../i18n.js";
import { currentRoute, go, hasRoute } from "../router.js";
import { client, register, report, signIn, signOut } from "../shop.js";
import { notify, state } from "../store.js";

/** Returns where the customer came from: a path of this shop, and no other address. */
function nextAddress() {
  const { query, path } = currentRoute();
  const next = hasRoute("signIn") ? (query.get("next") ?? "/") : path;
  return next.startsWith("/") && !next.startsWith("//") && !next.includes("\\") ? next : "/";
}

const otherForm = (view) => `/shop/${view}?next=${encodeURIComponent(nextAddress())}`;

export function SignIn() {
  const submit = async ({ username, password }) => {
    await signIn(username, password);
    go(nextAddress(), { replace: true });
  };
  return html`
    <div class="narrow">
      <${Title}>${t("sign_in.title")}<//>
      <${Form} onSubmit=${submit} button=${t("sign_in.button")}>
        ${(wrong) => html`
          <${Field} name="username" label=${t("sign_in.username")} error=${wrong.username} autocomplete="username" autocapitalize="none" spellcheck=${false} required />
          <${Field} name="password" label=${t("sign_in.password")} error=${wrong.password} type="password" autocomplete="current-password" required />
        `}
      <//>
      <p><a href=${otherForm("register")}>${t("sign_in.new")}</a></p>
    </div>
  `;
}

export function Register() {
  const submit = async (account) => {
    await register(account);
    go(nextAddress(), { replace: true });
  };
  return html`
    <div class="narrow">
      <${Title}>${t("register.title")}<//>
      <${Form} onSubmit=${submit} button=${t("register.button")}>
        ${(wrong) => html`
          <${Field} name="username" label=${t("register.username")} error=${wrong.username} autocomplete="username" autocapitalize="none" spellcheck=${false} required />
          <${Field} name="email" label=${t("register.email")} error=${wrong.email} type="email" autocomplete="email" required />
          <${Field} name="password" label=${t("register.password")} hint=${t("register.password_hint")} error=${wrong.password} type="password" autocomplete="new-password" required />
        `}
      <//>
      <p><a href=${otherForm("sign-in")}>${t("register.known")}</a></p>
    </div>
  `;
}

export function Account() {
  const { user } = state;
  const [sessions, setSessions] = useState([]);
  const load = async () => setSessions((await client.get("/api/v1/auth/sessions", { params: { query: { limit: 100 } } })).items);
  useLoading(load, [user?.id]);
  if (!user) return html`<${SignInFirst} title=${t("account.title")} text=${t("account.sign_in")} />`;
  const leave = async (everywhere) => {
    await signOut(everywhere);
    go("/");
  };
  const end = async (id) => {
    await client.delete("/api/v1/auth/sessions/{id}", { params: { path: { id } } });
    await load();
    notify(t("account.ended"));
  };
  return html`
    <${Title}>${t("account.title")}<//>
    <p>${t("account.signed_in_as", { name: user.username })} · ${user.email}</p>
    <p class="buttons">
      <${ActionButton} action=${() => leave(false)} onError=${report}>${t("account.sign_out")}<//>
      <${ActionButton} class="danger" action=${() => leave(true)} onError=${report}>${t("account.sign_out_everywhere")}<//>
    </p>
    <h2>${t("account.sessions")}</h2>
    <ul class="sessions">
      ${sessions.map(
        ({ id, user_agent, last_used_at, current }) => html`<li key=${id}>
          <span>
            <strong>${deviceName(user_agent)}</strong>
            <small>${current ? t("account.this_device") : t("account.last_used", { at: dateTime(last_used_at) })}</small>
          </span>
          ${!current && html`<${ActionButton} action=${() => end(id)} onError=${report}>${t("account.end_session")}<//>`}
        </li>`,
      )}
    </ul>
  `;
}

/** Returns the browser and the system of a user agent, where it names them. */
function deviceName(userAgent = "") {
  const find = (names) => names.find(([pattern]) => pattern.test(userAgent))?.[1];
  const browser = find([[/Edg\//, "Edge"], [/Firefox\//, "Firefox"], [/Chrome\//, "Chrome"], [/Safari\//, "Safari"], [/curl/, "curl"]]);
  const system = find([[/iPhone|iPad/, "iOS"], [/Android/, "Android"], [/Windows/, "Windows"], [/Mac OS/, "macOS"], [/Linux/, "Linux"]]);
  return [browser, system].filter(Boolean).join(", ") || t("account.unknown_device");
}

// The back office, for admins: orders, products, users, service accounts, the audit log and the status of the shop. It shows
// nothing that the API does not check itself.

import { ActionButton, ConnectionBar, Icon, Languages, Notice, Title } from "../components.js";
import { html, render, useEffect, useRef } from "../html.js";
import { addMessages, t } from "../i18n.js";
import { followLink, setRoutes, useRoute } from "../router.js";
import { report, sendWrite, signOut } from "../shop.js";
import { notify, useStore } from "../store.js";
import { resumeWrites, startWrites } from "../writes.js";
import { SignIn } from "../views/account.js";
import { Accounts, keepSecret } from "./accounts.js";
import { Audit } from "./audit.js";
import { messages } from "./messages.js";
import { Orders } from "./orders.js";
import { Products } from "./products.js";
import { Status } from "./status.js";
import { Transfer } from "./transfer.js";
import { Users } from "./users.js";

addMessages(messages);
/** Name, address and component of each view, in the order of the navigation. */
const VIEWS = [
  ["orders", "/admin", Orders],
  ["products", "/admin/products", Products],
  ["transfer", "/admin/transfer", Transfer],
  ["users", "/admin/users", Users],
  ["accounts", "/admin/accounts", Accounts],
  ["audit", "/admin/audit", Audit],
  ["status", "/admin/status", Status],
];
setRoutes(VIEWS.map(([name, path]) => [new RegExp(`^${path}$`), name]));

function View({ user, name }) {
  if (!user) return html`<${SignIn} />`;
  if (user.role !== "admin") {
    return html`
      <${Title}>${t("admin.title")}<//>
      <p>${t("admin.no_admin", { name: user.username })}</p>
      <p class="buttons">
        <a class="button" href="/">${t("missing.home")}</a>
        <${ActionButton} action=${() => signOut()} onError=${report}>${t("account.sign_out")}<//>
      </p>
    `;
  }
  const [, , Component] = VIEWS.find(([view]) => view === name) ?? VIEWS[0];
  return html`<${Component} />`;
}

function App() {
  const { user } = useStore();
  const { name } = useRoute();
  const main = useRef();
  const isFirst = useRef(true);
  const tabs = useRef();
  useEffect(() => {
    // On a narrow screen the tabs scroll.
    tabs.current.querySelector("[aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });
    if (!isFirst.current) main.current.querySelector("h1")?.focus();
    isFirst.current = false;
  }, [name]);
  const skip = (event) => {
    event.preventDefault();
    main.current.focus();
  };
  return html`
    <a class="skip" href="#content" onClick=${skip}>${t("skip")}</a>
    <header class="top">
      <div class="top-row admin-row">
        <a class="logo" href="/admin"><${Icon} name="logo" />${t("admin.title")}</a>
        <nav class="tabs" ref=${tabs} aria-label=${t("admin.title")}>
          ${VIEWS.map(([view, href]) => html`<a href=${href} aria-current=${view === name ? "page" : undefined}>${t(`admin.${view}`)}</a>`)}
        </nav>
        <${Languages} />
        ${user && html`<${ActionButton} action=${() => signOut()} onError=${report}>${t("account.sign_out")}<//>`}
      </div>
    </header>
    <${ConnectionBar} />
    <main id="content" class="admin" tabindex="-1" ref=${main}>
      <${Notice} />
      <${View} key=${name} user=${user} name=${name} />
    </main>
    <div id="announcements" class="hidden" role="status" aria-live="polite"></div>
  `;
}

document.addEventListener("click", (event) => {
  if (followLink(event)) notify("");
});
// The views read their lists again after a write.
startWrites(sendWrite, { secret: keepSecret });
resumeWrites(report);
render(html`<${App} />`, document.getElementById("app"));

// The storefront: a page that shows the view of its address, and keeps it while the customer moves about.

import { ConnectionBar, Footer, Header, Notice, Title } from "./components.js";
import { html, render, useEffect, useRef } from "./html.js";
import { t } from "./i18n.js";
import { followLink, setRoutes, useRoute } from "./router.js";
import { start } from "./shop.js";
import { notify, useStore } from "./store.js";
import { Account, Register, SignIn } from "./views/account.js";
import { Cart } from "./views/cart.js";
import { Catalogue } from "./views/catalogue.js";
import { Checkout } from "./views/checkout.js";
import { Order } from "./views/order.js";
import { Orders } from "./views/orders.js";
import { Product } from "./views/product.js";

// The catalogue is `/`, and `/shop` with a query.
setRoutes([
  [/^\/(?:shop)?$/, "catalogue"],
  [/^\/shop\/products\/(\d+)$/, "product"],
  [/^\/shop\/cart$/, "cart"],
  [/^\/shop\/checkout$/, "checkout"],
  [/^\/shop\/orders$/, "orders"],
  [/^\/shop\/orders\/([0-9a-f-]{36})$/, "order"],
  [/^\/shop\/account$/, "account"],
  [/^\/shop\/sign-in$/, "signIn"],
  [/^\/shop\/register$/, "register"],
]);

const VIEWS = {
  account: Account,
  cart: Cart,
  catalogue: Catalogue,
  checkout: Checkout,
  missing: Missing,
  order: Order,
  orders: Orders,
  product: Product,
  register: Register,
  signIn: SignIn,
};

function Missing() {
  return html`<${Title}>${t("missing.title")}<//><p><a class="button" href="/">${t("missing.home")}</a></p>`;
}

function App() {
  useStore();
  const { name, id } = useRoute();
  const main = useRef();
  const isFirst = useRef(true);
  // A new view begins at its top, with the focus on its heading. The first one leaves the focus where it is.
  useEffect(() => {
    if (isFirst.current) {
      isFirst.current = false;
      return;
    }
    scrollTo(0, 0);
    main.current.querySelector("h1")?.focus({ preventScroll: true });
  }, [name, id]);
  const skip = (event) => {
    event.preventDefault();
    main.current.focus();
  };
  return html`
    <a class="skip" href="#content" onClick=${skip}>${t("skip")}</a>
    <${Header} />
    <${ConnectionBar} />
    <main id="content" tabindex="-1" ref=${main}>
      <${Notice} />
      <${VIEWS[name]} key=${`${name}-${id}`} id=${id} />
    </main>
    <${Footer} />
    <div id="announcements" class="hidden" role="status" aria-live="polite"></div>
  `;
}

document.addEventListener("click", (event) => {
  // The notice belongs to the view before.
  if (followLink(event)) notify("");
});
start();
render(html`<${App} />`, document.getElementById("app"));

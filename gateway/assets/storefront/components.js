// The parts that several views are made of.

import { Fragment, html, useEffect, useId, useRef, useState } from "./html.js";
import { LANGUAGES, categoryName, language, money, number, setLanguage, t } from "./i18n.js";
import { pictureOf } from "./pictures.js";
import { explain, fieldErrors } from "./problems.js";
import { currentRoute, go, signInAddress } from "./router.js";
import { loadProduct, report } from "./shop.js";
import { notify, state } from "./store.js";
import { isRetryable, retry } from "./writes.js";

/** The stock below which the shop shows "only n left". */
const LOW_STOCK_THRESHOLD = 10;

/** Reads for a view until there is an answer, again with each change of `keys`. Does nothing while one of them is missing. */
export function useLoading(read, keys) {
  useEffect(() => {
    let isOver = false;
    if (keys.every((key) => key !== undefined)) {
      retry(read, () => isOver).catch((error) => isOver || isRetryable(error) || report(error));
    }
    return () => (isOver = true);
  }, keys);
}

/** The first heading of a view: it has the focus after a change of the view, so that a screen reader begins there. */
export function Title({ children, title }) {
  const heading = useRef();
  useEffect(() => {
    document.title = `${title ?? children} – ${t("shop.name")}`;
  });
  return html`<h1 tabindex="-1" ref=${heading}>${children}</h1>`;
}

/** A picture of a product. The name stands beside it, so that it needs no text of its own. */
export function Picture({ product, size = 400, eager = false }) {
  return html`<img
    class="picture" src=${pictureOf(product)} alt="" width=${size} height=${size}
    loading=${eager ? "eager" : "lazy"} decoding="async"
  />`;
}

/** A small picture by id, of a product that is read if it is not known. */
export function Thumbnail({ id }) {
  useEffect(() => {
    let isOver = false;
    // One that is no longer in the shop has a neutral picture.
    if (!state.products.has(id)) retry(() => loadProduct(id), () => isOver).catch(() => {});
    return () => (isOver = true);
  }, [id]);
  return html`<${Picture} product=${state.products.get(id) ?? {}} size=${96} />`;
}

export function Stock({ stock, exact = false }) {
  if (stock === 0) return html`<span class="stock none">${t("stock.sold_out")}</span>`;
  if (stock < LOW_STOCK_THRESHOLD) return html`<span class="stock few">${t("stock.few", { n: number(stock) })}</span>`;
  return html`<span class="stock">${exact ? t("stock.count", { n: number(stock) }) : t("stock.plenty")}</span>`;
}

export function ProductCard({ product, eager }) {
  const { id, name, price, currency, stock, category } = product;
  return html`
    <li class="card">
      <a href="/shop/products/${id}">
        <${Picture} product=${product} eager=${eager} />
        <span class="card-text">
          ${category && html`<span class="eyebrow">${categoryName(category)}</span>`}
          <span class="card-name">${name}</span>
          <span class="card-foot"><strong class="price">${money(price, currency)}</strong> <${Stock} stock=${stock} /></span>
        </span>
      </a>
    </li>
  `;
}

/** A number of units, with buttons. `onChange` is given each number that is entered. */
export function Quantity({ value, max = 1000, label, onChange }) {
  const [typed, setTyped] = useState(value);
  const entered = useRef(value);
  useEffect(() => {
    setTyped(value);
    entered.current = value;
  }, [value]);
  const set = (next) => {
    const valid = Math.min(Math.max(Math.trunc(next) || 1, 1), Math.min(max, 1000));
    setTyped(valid);
    if (valid === entered.current) return;
    entered.current = valid;
    onChange(valid);
  };
  return html`
    <span class="quantity">
      <button type="button" aria-label=${t("product.fewer")} disabled=${entered.current <= 1} onClick=${() => set(entered.current - 1)}>−</button>
      <input
        type="number" inputmode="numeric" min="1" max="1000" aria-label=${label} value=${typed}
        onInput=${(event) => setTyped(event.target.value)} onChange=${(event) => set(event.target.valueAsNumber)}
      />
      <button type="button" aria-label=${t("product.more")} disabled=${entered.current >= max} onClick=${() => set(entered.current + 1)}>+</button>
    </span>
  `;
}

/** A button that is busy while its action runs, so that a double click is one action. */
export function ActionButton({ action, busy, children, class: className = "", onError, ...rest }) {
  const [isBusy, setBusy] = useState(false);
  const isMounted = useRef(true);
  useEffect(() => () => (isMounted.current = false), []);
  const run = async () => {
    if (isBusy) return;
    notify("");
    setBusy(true);
    await Promise.resolve(action()).catch(onError);
    if (isMounted.current) setBusy(false);
  };
  return html`
    <button type="button" class=${className} aria-busy=${isBusy} onClick=${run} ...${rest}>
      ${isBusy ? (busy ?? t("busy")) : children}
    </button>
  `;
}

/** A form that shows the sentence of each wrong field beside it, and of anything else above. */
export function Form({ onSubmit, button, busy, children, onError, class: className = "form" }) {
  const [error, setError] = useState();
  const [isBusy, setBusy] = useState(false);
  const form = useRef();
  const submit = async (event) => {
    event.preventDefault();
    if (isBusy) return;
    setBusy(true);
    setError(undefined);
    notify("");
    try {
      await onSubmit(Object.fromEntries(new FormData(form.current)));
    } catch (error) {
      setError(error);
      onError?.(error);
    }
    setBusy(false);
  };
  const wrong = fieldErrors(error);
  // The focus goes to the first wrong field, or to the sentence above.
  useEffect(() => {
    if (!error) return;
    const field = form.current?.querySelector("[aria-invalid=true]") ?? form.current?.querySelector(".form-error");
    field?.focus();
  }, [error]);
  const fields = typeof children === "function" ? children(wrong) : children;
  return html`
    <form class=${className} ref=${form} onSubmit=${submit} novalidate>
      ${error && !Object.keys(wrong).length && html`<p class="form-error" role="alert" tabindex="-1">${explain(error)}</p>`}
      ${fields}
      <button class="primary" aria-busy=${isBusy}>${isBusy ? (busy ?? t("busy")) : button}</button>
    </form>
  `;
}

export function Field({ name, label, hint, error, children, ...input }) {
  const id = useId();
  const described = error || hint ? `${id}-note` : undefined;
  const control = { id, name, "aria-invalid": error ? "true" : undefined, "aria-describedby": described };
  return html`
    <div class="field">
      <label for=${id}>${label}</label>
      ${children ? children(control) : html`<input ...${control} ...${input} />`}
      ${(error || hint) && html`<p id=${described} class=${error ? "field-error" : "hint"}>${error || hint}</p>`}
    </div>
  `;
}

/** Asks for a sign-in in a view that needs a user. */
export function SignInFirst({ title, text }) {
  return html`
    <${Title}>${title}<//>
    <p>${text}</p>
    <p><a class="button primary" href=${signInAddress()}>${t("nav.sign_in")}</a></p>
  `;
}

export function Header() {
  const { name, id, query } = currentRoute();
  const q = name === "catalogue" ? (query.get("q") ?? "") : "";
  const [typed, setTyped] = useState(q);
  useEffect(() => setTyped(q), [name, q]);
  const count = state.cart?.items.length ?? 0;
  const search = (text, replace) => {
    const next = new URLSearchParams(name === "catalogue" ? query : undefined);
    if (text.trim()) next.set("q", text.trim());
    else next.delete("q");
    if (!text.trim() && next.get("sort") === "relevance") next.delete("sort");
    go(next.size ? `/shop?${next}` : "/", { replace });
  };
  const timer = useRef();
  useEffect(() => () => clearTimeout(timer.current), [name, id]);
  const type = (event) => {
    const text = event.target.value;
    setTyped(text);
    clearTimeout(timer.current);
    timer.current = setTimeout(() => search(text, name === "catalogue" && q !== ""), 180);
  };
  const submit = (event) => {
    event.preventDefault();
    clearTimeout(timer.current);
    search(typed, false);
  };
  const link = (href, view, icon, label) => html`
    <a href=${href} aria-current=${name === view ? "page" : undefined}><${Icon} name=${icon} /><span>${label}</span></a>
  `;
  return html`
    <header class="top">
      <div class="top-row">
        <a class="logo" href="/"><${Icon} name="logo" />${t("shop.name")}</a>
        <form class="search" role="search" onSubmit=${submit}>
          <${Icon} name="search" />
          <input
            type="search" name="q" maxlength="200" autocomplete="off" spellcheck="false"
            aria-label=${t("search.label")} placeholder=${t("search.placeholder")} value=${typed} onInput=${type}
          />
        </form>
        <${Languages} />
        <nav class="menu" aria-label=${t("nav.main")}>
          ${link("/shop/orders", "orders", "orders", t("nav.orders"))}
          ${state.user
            ? link("/shop/account", "account", "user", t("nav.account"))
            : link(signInAddress(), "signIn", "user", t("nav.sign_in"))}
          <a class="to-cart" href="/shop/cart" aria-current=${name === "cart" ? "page" : undefined}>
            <${Icon} name="cart" /><span>${t("nav.cart")}</span> ${count > 0 && html`<b class="badge">${count}</b>`}
          </a>
        </nav>
      </div>
    </header>
  `;
}

/** A button for each other language, in that language. */
export function Languages() {
  return LANGUAGES.filter(([tag]) => tag !== language).map(
    ([tag, name]) => html`<button type="button" class="language" lang=${tag} onClick=${() => setLanguage(tag)}>${name}</button>`,
  );
}

export function Footer() {
  return html`
    <footer class="bottom">
      <p>${t("footer.about")} <a href="/docs">${t("footer.api")}</a></p>
    </footer>
  `;
}

/** Says that the page is offline, that the shop does not answer, or that events are caught up with. */
export function ConnectionBar() {
  const { isOffline, isUnreachable, live, user, pending } = state;
  let text;
  if (isOffline) text = t("live.offline");
  else if (isUnreachable) text = t("live.unreachable");
  else if (user && live === "waiting") text = t("live.waiting");
  const waiting = text && pending.length ? ` ${t("live.pending", { n: pending.length })}` : "";
  return html`<div role="status" class="connection" data-state=${text ? "trouble" : "fine"}>${text}${waiting}</div>`;
}

export function Notice() {
  const { notice } = state;
  const isError = notice?.kind === "error";
  return html`
    <${Fragment}>
      <div role=${isError ? "alert" : "status"}>
        ${notice &&
        html`<div class="notice ${notice.kind}">
          <p>${notice.text}</p>
          <button type="button" aria-label=${t("notice.dismiss")} onClick=${() => notify("")}>×</button>
        </div>`}
      </div>
    <//>
  `;
}

const ICONS = {
  logo: html`<path d="M5 8h14l-1.2 11.2a2 2 0 0 1-2 1.8H8.2a2 2 0 0 1-2-1.8z" /><path d="M9 10.5V7a3 3 0 0 1 6 0v3.5" />`,
  search: html`<circle cx="11" cy="11" r="6.5" /><path d="m16 16 4.5 4.5" />`,
  cart: html`<path d="M3 4h2.5l2.3 11h9.700l2-8H6.400" /><circle cx="9" cy="19.5" r="1.3" /><circle cx="16.5" cy="19.5" r="1.3" />`,
  user: html`<circle cx="12" cy="8" r="3.8" /><path d="M4.5 20.5a7.5 7.5 0 0 1 15 0" />`,
  orders: html`<path d="M4 7.5 12 3.5l8 4v9l-8 4-8-4z" /><path d="m4 7.5 8 4 8-4M12 11.5v9" />`,
};

export function Icon({ name }) {
  return html`<svg class="icon" viewBox="0 0 24 24" aria-hidden="true" focusable="false">${ICONS[name]}</svg>`;
}

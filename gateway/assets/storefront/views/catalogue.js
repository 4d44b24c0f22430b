// The catalogue: categories, facets, sort, and a search as it is typed. The address has all of the choice.

import { ProductCard, Title } from "../components.js";
import { html, useEffect, useRef, useState } from "../html.js";
import { categoryName, compare, money, number, parseMoney, shopCurrency, t, typedMoney } from "../i18n.js";
import { explain } from "../problems.js";
import { go, useRoute } from "../router.js";
import { client } from "../shop.js";
import { keepProducts, state } from "../store.js";
import { isRetryable } from "../writes.js";

const PAGE_SIZE = 24;
const RETRY_DELAY = 2_000;
/** Where the filters stand beside the list, and are always open: as in style.css. */
const WIDE = matchMedia("(min-width: 56rem)");
/** Above the fold: the browser need not wait for the layout to fetch them. */
const EAGER_PICTURES = 8;

const HERO_PICTURES = ["table-lamp/brass/moss-green", "teapot/stoneware/terracotta", "two-person-tent/ripstop/mustard"];

/** Returns the sort orders of a search or of the list, the default first. */
const sortsOf = (q) => [...(q ? ["relevance"] : []), "newest", "price_asc", "price_desc", "name"];

/** Returns the API's query of an address. */
function queryOf(address) {
  const q = address.get("q");
  const query = { limit: PAGE_SIZE };
  if (q) Object.assign(query, { q, facets: true });
  if (address.get("category")) query.category = address.get("category");
  if (address.get("in_stock") === "true") query.in_stock = true;
  for (const name of ["min_price", "max_price"]) {
    const value = address.get(name);
    if (value !== null && /^\d{1,12}$/.test(value)) query[name] = Number(value);
  }
  // A range the wrong way round finds nothing; the shop would refuse it.
  if (query.min_price > query.max_price) [query.min_price, query.max_price] = [query.max_price, query.min_price];
  const sort = address.get("sort");
  if (sortsOf(q).includes(sort)) query.sort = sort;
  return query;
}

function fetchPage(query, signal) {
  const path = query.q ? "/api/v1/products/search" : "/api/v1/products";
  return client.get(path, { params: { query }, signal });
}

/** The results of an address: pages that were read so far. Waits and tries again while the shop does not answer. */
function useResults(address) {
  const [results, setResults] = useState({ items: [], isLoading: true });
  const text = address.toString();
  const current = useRef();
  useEffect(() => {
    const abort = new AbortController();
    let timer;
    const load = async () => {
      setResults((before) => ({ ...before, isLoading: true }));
      try {
        const page = await fetchPage(queryOf(address), abort.signal);
        if (abort.signal.aborted) return;
        keepProducts(page.items);
        setResults({ ...page, isLoading: false });
      } catch (error) {
        if (abort.signal.aborted) return;
        setResults({ items: [], isLoading: false, error });
        if (isRetryable(error)) timer = setTimeout(load, RETRY_DELAY);
      }
    };
    current.current = abort.signal;
    load();
    return () => {
      abort.abort();
      clearTimeout(timer);
    };
  }, [text]);
  const loadMore = async () => {
    const signal = current.current;
    setResults((before) => ({ ...before, isLoading: true }));
    try {
      const page = await fetchPage({ ...queryOf(address), cursor: results.next_cursor, facets: undefined }, signal);
      keepProducts(page.items);
      if (!signal.aborted) {
        setResults((before) => ({ ...before, items: [...before.items, ...page.items], next_cursor: page.next_cursor, isLoading: false }));
      }
    } catch (error) {
      if (!signal.aborted) setResults((before) => ({ ...before, isLoading: false, error }));
    }
  };
  return [results, loadMore];
}

export function Catalogue() {
  const { query: address } = useRoute();
  const [results, loadMore] = useResults(address);
  const list = useRef();
  const q = address.get("q");
  const category = state.categories.find(({ slug }) => slug === address.get("category"));
  const isHome = !address.size;

  const choose = (changes) => {
    const next = new URLSearchParams(address);
    for (const [name, value] of Object.entries(changes)) {
      if (value === undefined || value === "") next.delete(name);
      else next.set(name, value);
    }
    go(next.size ? `/shop?${next}` : "/");
  };
  const more = async () => {
    const count = results.items.length;
    await loadMore();
    // The button is gone after the last page: the focus goes to the first new product.
    list.current?.querySelectorAll("a")[count]?.focus();
  };

  const heading = q
    ? t("catalogue.results", { n: number(results.total ?? 0), exact: results.total_is_exact !== false, q })
    : category
      ? categoryName(category)
      : t("catalogue.title");
  return html`
    ${isHome &&
    html`<section class="hero">
      <div>
        <p class="hero-title">${t("shop.tagline")}</p>
        <p>${t("shop.lead")}</p>
      </div>
      ${HERO_PICTURES.map((picture) => html`<img class="picture" src="/shop/pictures/${picture}.svg" alt="" width="200" height="200" />`)}
    </section>`}
    <${Chips} address=${address} />
    <div class="catalogue">
      <aside aria-label=${t("filter.title")}><${Filters} address=${address} facets=${results.facets} choose=${choose} /></aside>
      <section aria-busy=${results.isLoading}>
        <div class="list-head">
          <${Title}>${q && results.total === undefined ? t("catalogue.loading") : heading}<//>
          <${Sort} address=${address} choose=${choose} />
        </div>
        <${Results} results=${results} list=${list} more=${more} />
      </section>
    </div>
  `;
}

function Results({ results, list, more }) {
  const { items, next_cursor, isLoading, error } = results;
  return html`
    ${error && html`<p class="form-error" role="alert">${explain(error)}</p>`}
    ${!isLoading && !error && !items.length &&
    html`<div class="empty">
      <p>${t("catalogue.empty")}</p>
      <p>${t("catalogue.empty_hint")}</p>
      <p><a class="button" href="/">${t("catalogue.reset")}</a></p>
    </div>`}
    <ul class="cards" ref=${list}>
      ${items.map((product, at) => html`<${ProductCard} key=${product.id} product=${product} eager=${at < EAGER_PICTURES} />`)}
    </ul>
    ${isLoading && !items.length && html`<p class="hint">${t("catalogue.loading")}</p>`}
    ${next_cursor &&
    html`<p class="more"><button type="button" aria-busy=${isLoading} onClick=${more}>${t("catalogue.more")}</button></p>`}
  `;
}

function Sort({ address, choose }) {
  const q = address.get("q");
  const sorts = sortsOf(q);
  const chosen = sorts.includes(address.get("sort")) ? address.get("sort") : sorts[0];
  return html`
    <label class="sort">
      <span>${t("sort.label")}</span>
      <select name="sort" value=${chosen} onChange=${({ target }) => choose({ sort: target.value === sorts[0] ? undefined : target.value })}>
        ${sorts.map((sort) => html`<option value=${sort} selected=${sort === chosen}>${t(`sort.${sort}`)}</option>`)}
      </select>
    </label>
  `;
}

/** Returns the address with another category. */
function hrefOf(address, slug) {
  const next = new URLSearchParams(address);
  if (slug) next.set("category", slug);
  else next.delete("category");
  return next.size ? `/shop?${next}` : "/";
}

/** The roots of the categories, above the list. */
function Chips({ address }) {
  const chosen = address.get("category");
  const roots = state.categories.filter(({ parent_id }) => !parent_id);
  const chip = (slug, name, isChosen) => html`
    <li><a class="chip" href=${hrefOf(address, slug)} aria-current=${isChosen ? "true" : undefined}>${name}</a></li>
  `;
  const isWithin = (root) => root.slug === chosen || state.categories.some(({ slug, parent_id }) => slug === chosen && parent_id === root.id);
  return html`
    <nav aria-label=${t("filter.category")}>
      <ul class="chips">
        ${chip(undefined, t("catalogue.all"), !chosen)}
        ${roots.map((root) => chip(root.slug, categoryName(root), isWithin(root)))}
      </ul>
    </nav>
  `;
}

function Filters({ address, facets, choose }) {
  const [isWide, setWide] = useState(WIDE.matches);
  useEffect(() => {
    const listener = () => setWide(WIDE.matches);
    WIDE.addEventListener("change", listener);
    return () => WIDE.removeEventListener("change", listener);
  }, []);
  const chosen = address.get("category");
  const root = state.categories.find(({ slug }) => slug === chosen);
  const top = root?.parent_id ?? root?.id;
  const counts = new Map(facets?.category?.map(({ slug, count }) => [slug, count]));
  const shown = facets
    ? state.categories.filter(({ slug, parent_id }) => counts.has(slug) && parent_id)
    : state.categories.filter(({ parent_id }) => parent_id && (!top || parent_id === top));
  const sorted = [...shown].sort((a, b) => compare(categoryName(a), categoryName(b)));
  return html`
    <details class="filters" open=${isWide}>
      <summary>${t("filter.title")}</summary>
      <div class="filter-body">
        ${sorted.length > 0 &&
        html`<h2>${t("filter.category")}</h2>
          <ul class="facet">
            ${sorted.map(
              (category) => html`<li>
                <a href=${hrefOf(address, category.slug === chosen ? undefined : category.slug)} aria-current=${category.slug === chosen ? "true" : undefined}>
                  <span>${categoryName(category)}</span>
                  ${facets && html`<small>${number(counts.get(category.slug))}</small>`}
                </a>
              </li>`,
            )}
          </ul>`}
        <h2>${t("filter.price")}</h2>
        <${Prices} address=${address} facets=${facets} choose=${choose} />
        <label class="check">
          <input type="checkbox" name="in_stock" checked=${address.get("in_stock") === "true"}
            onChange=${({ target }) => choose({ in_stock: target.checked ? "true" : undefined })} />
          <span>${t("filter.in_stock")}</span>
          ${facets?.in_stock && html`<small>${number(facets.in_stock.true)}</small>`}
        </label>
        ${["category", "min_price", "max_price", "in_stock"].some((name) => address.has(name)) &&
        html`<p><a href=${address.get("q") ? `/shop?q=${encodeURIComponent(address.get("q"))}` : "/"}>${t("catalogue.reset")}</a></p>`}
      </div>
    </details>
  `;
}

function Prices({ address, facets, choose }) {
  const currency = shopCurrency();
  const shown = (name) => (address.has(name) ? typedMoney(Number(address.get(name)), currency) : "");
  const submit = (event) => {
    event.preventDefault();
    const { min, max } = Object.fromEntries(new FormData(event.target));
    choose({ min_price: parseMoney(min), max_price: parseMoney(max) });
  };
  const range = ({ min, max, count }) => {
    const isChosen = address.get("min_price") === String(min) && address.get("max_price") === String(max);
    const pick = () => choose(isChosen ? { min_price: undefined, max_price: undefined } : { min_price: min, max_price: max });
    return html`<li>
      <button type="button" aria-pressed=${isChosen} onClick=${pick}>
        <span>${money(min, currency)} – ${money(max, currency)}</span> <small>${number(count)}</small>
      </button>
    </li>`;
  };
  return html`
    ${facets?.price?.length > 0 && html`<ul class="facet">${facets.price.map(range)}</ul>`}
    <form class="prices" onSubmit=${submit}>
      <label>${t("filter.min")}<input name="min" inputmode="decimal" autocomplete="off" value=${shown("min_price")} /></label>
      <label>${t("filter.max")}<input name="max" inputmode="decimal" autocomplete="off" value=${shown("max_price")} /></label>
      <button>${t("filter.apply")}</button>
    </form>
  `;
}

// Addresses: views by path, without a reload.

import { useEffect, useState } from "preact/hooks";

const listeners = new Set();

let routes = [];

/** Sets pattern and name of each view. A group of a pattern is the view's parameter. */
export function setRoutes(table) {
  routes = table;
}

/** Reports whether this page has a view of this name. */
export const hasRoute = (name) => routes.some(([, known]) => known === name);

/** Returns the current view: its name, its parameter and its query. */
export function currentRoute() {
  const { pathname, search } = location;
  for (const [pattern, name] of routes) {
    const match = pattern.exec(pathname);
    if (match) return { name, id: match[1], query: new URLSearchParams(search), path: pathname };
  }
  return { name: "missing", query: new URLSearchParams(search), path: pathname };
}

/** Returns the address of the sign-in, which leads back to where the customer is. */
export function signInAddress() {
  const { name, path, query } = currentRoute();
  const next = ["signIn", "register"].includes(name) ? query.get("next") : path + location.search;
  return next && next !== "/" ? `/shop/sign-in?next=${encodeURIComponent(next)}` : "/shop/sign-in";
}

/** Shows another address. `replace` leaves no entry in the history, as while a search is typed. */
export function go(address, { replace = false } = {}) {
  const isSame = address === location.pathname + location.search;
  if (!isSame) history[replace ? "replaceState" : "pushState"](null, "", address);
  for (const listener of listeners) listener();
}

/** Returns the current view, and renders the calling component when it changes. */
export function useRoute() {
  const [route, setRoute] = useState(currentRoute);
  useEffect(() => {
    const listener = () => setRoute(currentRoute());
    listeners.add(listener);
    addEventListener("popstate", listener);
    return () => {
      listeners.delete(listener);
      removeEventListener("popstate", listener);
    };
  }, []);
  return route;
}

/** Follows a link of the shop without a reload, and reports it. One with a modifier key or a target is the browser's. */
export function followLink(event) {
  const link = event.target.closest?.("a[href]");
  if (!link || event.defaultPrevented || event.button !== 0 || link.target || link.hasAttribute("download")) return false;
  if (event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return false;
  const url = new URL(link.href);
  const isView = routes.some(([pattern]) => pattern.test(url.pathname));
  if (url.origin !== location.origin || !isView || url.hash) return false;
  event.preventDefault();
  go(url.pathname + url.search);
  return true;
}

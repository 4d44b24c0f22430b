// The state that all views share. A change renders the page again; preact updates the differences.

import { useEffect, useState } from "preact/hooks";

const listeners = new Set();

export const state = {
  /** The signed-in user. */
  user: undefined,
  cart: undefined,
  /** Orders by id: of REST and of events; the higher version is newer. */
  orders: new Map(),
  /** Products by id, as they were read last. */
  products: new Map(),
  categories: [],
  /** `closed`, `waiting` or `open`: the live events of the signed-in user. */
  live: "closed",
  isOffline: !navigator.onLine,
  /** True while the shop does not answer. */
  isUnreachable: false,
  /** Writes without an answer. */
  pending: [],
  /** The outcome of the last action: `{ kind: "error" | "info", text }`. */
  notice: undefined,
};

export function update(changes) {
  Object.assign(state, changes);
  for (const listener of listeners) listener();
}

/** Renders the calling component after each change of the state. */
export function useStore() {
  const [, render] = useState(0);
  useEffect(() => {
    const listener = () => render((count) => count + 1);
    listeners.add(listener);
    return () => listeners.delete(listener);
  }, []);
  return state;
}

export function keepProducts(products) {
  for (const product of products) state.products.set(product.id, product);
}

/** Keeps orders, unless a newer version is known. An event has fewer fields than REST; the others stay. */
export function keepOrders(orders) {
  for (const order of orders) {
    const current = state.orders.get(order.id);
    if (order.version > (current?.version ?? 0) || (order.version === current?.version && order.items)) {
      state.orders.set(order.id, { ...current, ...order });
    }
  }
  update({});
}

/** Returns the orders, the newest first: an id begins with the time of its order. */
export function newestOrders() {
  return [...state.orders.values()].sort((a, b) => (a.id < b.id ? 1 : -1));
}

export function notify(text, kind = "info") {
  update({ notice: text ? { text, kind } : undefined });
}

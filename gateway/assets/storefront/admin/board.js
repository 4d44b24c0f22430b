// The orders of the board: read once, then moved by the events of all users. It holds one page of each state.

import { AllEvents } from "@shoppee/client/all-events";
import { useEffect, useRef, useState } from "../html.js";
import { client, report, showLive } from "../shop.js";
import { useStore } from "../store.js";
import { retry } from "../writes.js";

const STATUSES = ["pending", "paid", "shipped", "completed", "cancelled"];
/** The orders of a column, of the newest. */
const COLUMN_SIZE = 25;
/** A column with fewer orders than this is read again, if the shop has more. */
const MIN_COLUMN_SIZE = 12;
/** The interval of reads, each of at most as many requests as there are columns: half of the rate limit. Milliseconds. */
const READ_INTERVAL = 500;
/** The interval of renderings while events arrive. Milliseconds. */
const RENDER_INTERVAL = 50;
/** Steps whose event lacks a part of the order: the shipment, the reason. */
const STEPS_WITH_DETAILS = ["shipped", "cancelled"];

class Board {
  #orders = new Map();
  /** The states of which the shop has more orders than the board. */
  #truncated = new Set();
  /** The orders of which only an event is known. */
  #incomplete = new Set();
  #isOutdated = true;
  #isReading = false;
  #isClosed = false;
  #columns = [];
  #rendering;
  #onChange;

  constructor(onChange) {
    this.#onChange = onChange;
  }

  close() {
    this.#isClosed = true;
    clearTimeout(this.#rendering);
  }

  /** Reads all columns again. */
  reload() {
    this.#isOutdated = true;
    this.#read();
  }

  /** Moves the order of an event. */
  move({ user_id, content: { order_id: id, ...step } }) {
    const known = this.#orders.get(id);
    if (known && known.version >= step.version) return;
    this.#put({ ...known, ...step, id, user_id });
    if (!known?.items || STEPS_WITH_DETAILS.includes(step.status)) this.#incomplete.add(id);
    this.#prune();
    this.#read();
  }

  /** Keeps an order as REST has it, unless a newer version is known. */
  keep(order) {
    this.#put(order);
    this.#prune();
    this.#read();
  }

  #put(order) {
    const known = this.#orders.get(order.id);
    if (known && known.version > order.version) return;
    this.#orders.set(order.id, order);
    if (order.items) this.#incomplete.delete(order.id);
  }

  /** Reads what is missing, in rounds, until the board is complete. */
  async #read() {
    if (this.#isReading) return;
    this.#isReading = true;
    try {
      while (!this.#isClosed && (this.#isOutdated || this.#incomplete.size)) {
        if (this.#isOutdated || this.#incomplete.size > STATUSES.length) await this.#readColumns();
        else await this.#readIncomplete();
        await new Promise((resolve) => setTimeout(resolve, READ_INTERVAL));
      }
    } catch (error) {
      if (!this.#isClosed) report(error);
    } finally {
      this.#isReading = false;
    }
  }

  async #readColumns() {
    this.#isOutdated = false;
    this.#incomplete.clear();
    const before = new Map(this.#orders);
    const read = (status) => this.#get("/api/v1/admin/orders", { query: { status, limit: COLUMN_SIZE } });
    const pages = await Promise.all(STATUSES.map(read));
    // Of the orders before, those stay that an event has moved meanwhile.
    for (const [id, order] of before) if (this.#orders.get(id) === order) this.#orders.delete(id);
    this.#truncated = new Set(STATUSES.filter((_, at) => pages[at].next_cursor));
    for (const order of pages.flatMap(({ items }) => items)) this.#put(order);
    this.#prune();
  }

  async #readIncomplete() {
    const ids = [...this.#incomplete];
    this.#incomplete.clear();
    const orders = await Promise.all(ids.map((id) => this.#get("/api/v1/orders/{id}", { path: { id } })));
    for (const order of orders) if (this.#orders.has(order.id)) this.#put(order);
    this.#prune();
  }

  #get(path, params) {
    return retry(() => client.get(path, { params }), () => this.#isClosed);
  }

  /** Drops the oldest orders of each column beyond its size, and shows the others. */
  #prune() {
    const columns = new Map(STATUSES.map((status) => [status, []]));
    for (const order of this.#orders.values()) columns.get(order.status)?.push(order);
    this.#orders.clear();
    for (const [status, orders] of columns) {
      // An id begins with the time of its order.
      orders.sort((a, b) => (a.id < b.id ? 1 : -1));
      if (orders.splice(COLUMN_SIZE).length) this.#truncated.add(status);
      if (orders.length < MIN_COLUMN_SIZE && this.#truncated.has(status)) this.#isOutdated = true;
      for (const order of orders) this.#orders.set(order.id, order);
    }
    for (const id of this.#incomplete) if (!this.#orders.has(id)) this.#incomplete.delete(id);
    this.#columns = [...columns].map(([status, orders]) => ({ status, orders, isTruncated: this.#truncated.has(status) }));
    const render = () => {
      this.#rendering = undefined;
      this.#onChange(this.#columns);
    };
    this.#rendering ??= setTimeout(render, RENDER_INTERVAL);
  }
}

/** Returns the columns, and a function that keeps an order. Follows the events while the view is shown. */
export function useBoard() {
  const [columns, setColumns] = useState();
  const board = useRef();
  const cursor = useRef();
  const { isOffline } = useStore();
  useEffect(() => {
    board.current = new Board(setColumns);
    return () => board.current.close();
  }, []);
  useEffect(() => {
    if (isOffline) return undefined;
    let isComplete = cursor.current !== undefined;
    const reload = () => board.current.reload();
    const events = new AllEvents(
      client,
      {
        onState(live) {
          showLive(live);
          // The columns are read after the stream is open, so that no step between the two is missed.
          if (live === "open" && !isComplete) reload();
          isComplete ||= live === "open";
        },
        onOrder: (frame) => board.current.move(frame),
        onReset: reload,
        // The answer says why the events ended, as where the session did.
        onError: reload,
      },
      { after: cursor.current },
    );
    return () => {
      cursor.current = events.cursor;
      events.close();
    };
    // A client that replaces another has its tokens.
  }, [client, isOffline]);
  return [columns, (order) => board.current.keep(order)];
}

// Live events over `GET /ws`: signed in by ticket, connected again after every loss, resumed by sequence number.

import { backoff, sleep } from "./backoff.js";
import { ProblemError } from "./problem.js";
import type { components } from "./schema.js";

type OrderFrame = components["schemas"]["OrderFrame"];
type ServerFrame = components["schemas"]["ServerFrame"];

/** What the constructor of a WebSocket must do: that of browsers and of Node 22, or the one of the package `ws`. */
export type WebSocketConstructor = new (url: string, protocols: string[]) => WebSocket;

/** `open`: events arrive. `waiting`: the socket is lost and is connected again. `closed`: for good. */
export type EventState = "waiting" | "open" | "closed";

export interface EventHandlers {
  /** A step of an order: each once, in order, without a gap. */
  onOrder(frame: OrderFrame): void;
  /** Events were missed that cannot be replayed: read the orders by REST. */
  onReset?(seq: number): void;
  onState?(state: EventState): void;
  /** Why the events are closed for good: the session has ended, or the shop refuses this client. */
  onError?(error: Error): void;
}

export interface EventOptions {
  /** The last `seq` that was seen, in an earlier run perhaps: what came after it is delivered first. */
  after?: number;
  /** Instead of the global one. */
  WebSocket?: WebSocketConstructor;
}

/** Between the first tries to connect, and the longest. Milliseconds. */
const FIRST_RETRY_DELAY = 250;
const MAX_RETRY_DELAY = 30_000;
/** A connection on which nothing arrived for so long is asked for a pong, which must arrive within so long. */
const PING_DELAY = 25_000;
const PONG_TIMEOUT = 10_000;
/** Closing codes from which the shop lets no client return. */
export const isFinal = (code: number) => code >= 4500 && code <= 4999;

export class LiveEvents {
  #seq: number | undefined;
  #state: EventState = "waiting";
  #socket: WebSocket | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #abandon = () => {};
  readonly #WebSocket: WebSocketConstructor;

  constructor(
    private readonly url: string,
    private readonly ticket: () => Promise<string>,
    private readonly handlers: EventHandlers,
    options: EventOptions,
  ) {
    this.#seq = options.after;
    this.#WebSocket = options.WebSocket ?? globalThis.WebSocket;
    if (this.#WebSocket === undefined) throw new Error("this runtime has no WebSocket: pass one in the options");
    void this.#run();
  }

  /** The number of the last event; the position to resume from in a later run. */
  get seq(): number | undefined {
    return this.#seq;
  }

  get state(): EventState {
    return this.#state;
  }

  close(): void {
    this.#enter("closed");
    clearTimeout(this.#timer);
    this.#socket?.close(1000);
  }

  async #run(): Promise<void> {
    for (let tries = 0; !this.#isClosed(); tries += 1) {
      if (tries > 0) await sleep(backoff(tries - 1, FIRST_RETRY_DELAY, MAX_RETRY_DELAY));
      try {
        const ticket = await this.ticket();
        if (this.#isClosed()) return;
        const { code, reason, wasOpen } = await this.#connect(ticket);
        if (isFinal(code)) return this.#fail(new Error(`the shop closed the socket: ${code} ${reason}`));
        if (wasOpen) tries = 0;
      } catch (error) {
        // Any other problem passes: the network, load, a restart.
        const isRefused = error instanceof ProblemError && [401, 403].includes(error.status);
        if (isRefused) return this.#fail(error);
      }
      if (!this.#isClosed()) this.#enter("waiting");
    }
  }

  /** Serves one socket until it ends. */
  #connect(ticket: string): Promise<{ code: number; reason: string; wasOpen: boolean }> {
    const url = this.#seq === undefined ? this.url : `${this.url}?after=${this.#seq}`;
    const socket = new this.#WebSocket(url, ["shoppee.v1", `ticket.${ticket}`]);
    this.#socket = socket;
    return new Promise((resolve) => {
      let wasOpen = false;
      const end = (code: number, reason: string) => {
        if (this.#socket === socket) clearTimeout(this.#timer);
        resolve({ code, reason, wasOpen });
      };
      socket.onmessage = ({ data }: MessageEvent<string>) => {
        this.#expect(socket);
        if (this.#isClosed() || this.#socket !== socket) return;
        const frame = JSON.parse(data) as ServerFrame;
        wasOpen ||= frame.type === "ready";
        this.#receive(frame, socket);
      };
      // What went wrong follows as a close.
      socket.onerror = () => {};
      socket.onclose = ({ code, reason }) => end(code, reason);
      // A peer that does not answer does not take part in a closing handshake either.
      this.#abandon = () => {
        socket.close();
        end(1006, "no answer");
      };
      this.#expect(socket);
    });
  }

  #receive(frame: ServerFrame, socket: WebSocket): void {
    if (frame.type === "ready") {
      const { seq, recovered } = frame.content;
      const isReset = !recovered && this.#seq !== undefined;
      // What is replayed follows, up to `seq`.
      if (this.#seq === undefined || !recovered) this.#seq = seq;
      this.#enter("open");
      if (isReset) this.handlers.onReset?.(seq);
    } else if (frame.type === "order") {
      const expected = (this.#seq ?? 0) + 1;
      if (frame.seq === expected) {
        this.#seq = frame.seq;
        this.handlers.onOrder(frame);
      } else if (frame.seq > expected) {
        // Never happens; where it does, the next socket replays what lacks.
        socket.close(1000);
      }
    }
  }

  /** Begins to wait for the next frame: a connection that broke without a word is noticed by its silence. */
  #expect(socket: WebSocket): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      if (socket.readyState === 1) socket.send(JSON.stringify({ type: "ping" }));
      this.#timer = setTimeout(() => this.#abandon(), PONG_TIMEOUT);
    }, PING_DELAY);
  }

  #isClosed(): boolean {
    return this.#state === "closed";
  }

  #fail(error: Error): void {
    this.#enter("closed");
    this.handlers.onError?.(error);
  }

  #enter(state: EventState): void {
    if (this.#state === state || this.#isClosed()) return;
    this.#state = state;
    this.handlers.onState?.(state);
  }
}

// Live events over `GET /ws`: signed in by ticket, connected again after every loss, resumed by sequence number.
import { backoff, sleep } from "./backoff.js";
import { ProblemError } from "./problem.js";
/** Between the first tries to connect, and the longest. Milliseconds. */
const FIRST_RETRY_DELAY = 250;
const MAX_RETRY_DELAY = 30_000;
/** A connection on which nothing arrived for so long is asked for a pong, which must arrive within so long. */
const PING_DELAY = 25_000;
const PONG_TIMEOUT = 10_000;
/** Closing codes from which the shop lets no client return. */
export const isFinal = (code) => code >= 4500 && code <= 4999;
export class LiveEvents {
    url;
    ticket;
    handlers;
    #seq;
    #state = "waiting";
    #socket;
    #timer;
    #abandon = () => { };
    #WebSocket;
    constructor(url, ticket, handlers, options) {
        this.url = url;
        this.ticket = ticket;
        this.handlers = handlers;
        this.#seq = options.after;
        this.#WebSocket = options.WebSocket ?? globalThis.WebSocket;
        if (this.#WebSocket === undefined)
            throw new Error("this runtime has no WebSocket: pass one in the options");
        void this.#run();
    }
    /** The number of the last event; the position to resume from in a later run. */
    get seq() {
        return this.#seq;
    }
    get state() {
        return this.#state;
    }
    close() {
        this.#enter("closed");
        clearTimeout(this.#timer);
        this.#socket?.close(1000);
    }
    async #run() {
        for (let tries = 0; !this.#isClosed(); tries += 1) {
            if (tries > 0)
                await sleep(backoff(tries - 1, FIRST_RETRY_DELAY, MAX_RETRY_DELAY));
            try {
                const ticket = await this.ticket();
                if (this.#isClosed())
                    return;
                const { code, reason, wasOpen } = await this.#connect(ticket);
                if (isFinal(code))
                    return this.#fail(new Error(`the shop closed the socket: ${code} ${reason}`));
                if (wasOpen)
                    tries = 0;
            }
            catch (error) {
                // Any other problem passes: the network, load, a restart.
                const isRefused = error instanceof ProblemError && [401, 403].includes(error.status);
                if (isRefused)
                    return this.#fail(error);
            }
            if (!this.#isClosed())
                this.#enter("waiting");
        }
    }
    /** Serves one socket until it ends. */
    #connect(ticket) {
        const url = this.#seq === undefined ? this.url : `${this.url}?after=${this.#seq}`;
        const socket = new this.#WebSocket(url, ["shoppee.v1", `ticket.${ticket}`]);
        this.#socket = socket;
        return new Promise((resolve) => {
            let wasOpen = false;
            const end = (code, reason) => {
                if (this.#socket === socket)
                    clearTimeout(this.#timer);
                resolve({ code, reason, wasOpen });
            };
            socket.onmessage = ({ data }) => {
                this.#expect(socket);
                if (this.#isClosed() || this.#socket !== socket)
                    return;
                const frame = JSON.parse(data);
                wasOpen ||= frame.type === "ready";
                this.#receive(frame, socket);
            };
            // What went wrong follows as a close.
            socket.onerror = () => { };
            socket.onclose = ({ code, reason }) => end(code, reason);
            // A peer that does not answer does not take part in a closing handshake either.
            this.#abandon = () => {
                socket.close();
                end(1006, "no answer");
            };
            this.#expect(socket);
        });
    }
    #receive(frame, socket) {
        if (frame.type === "ready") {
            const { seq, recovered } = frame.content;
            const isReset = !recovered && this.#seq !== undefined;
            // What is replayed follows, up to `seq`.
            if (this.#seq === undefined || !recovered)
                this.#seq = seq;
            this.#enter("open");
            if (isReset)
                this.handlers.onReset?.(seq);
        }
        else if (frame.type === "order") {
            const expected = (this.#seq ?? 0) + 1;
            if (frame.seq === expected) {
                this.#seq = frame.seq;
                this.handlers.onOrder(frame);
            }
            else if (frame.seq > expected) {
                // Never happens; where it does, the next socket replays what lacks.
                socket.close(1000);
            }
        }
    }
    /** Begins to wait for the next frame: a connection that broke without a word is noticed by its silence. */
    #expect(socket) {
        clearTimeout(this.#timer);
        this.#timer = setTimeout(() => {
            if (socket.readyState === 1)
                socket.send(JSON.stringify({ type: "ping" }));
            this.#timer = setTimeout(() => this.#abandon(), PONG_TIMEOUT);
        }, PING_DELAY);
    }
    #isClosed() {
        return this.#state === "closed";
    }
    #fail(error) {
        this.#enter("closed");
        this.handlers.onError?.(error);
    }
    #enter(state) {
        if (this.#state === state || this.#isClosed())
            return;
        this.#state = state;
        this.handlers.onState?.(state);
    }
}

// The events of all users over `GET /api/v1/admin/orders/stream`, for admins: connected again after every loss, resumed by
// cursor.
import { backoff, sleep } from "./backoff.js";
import { isFinal } from "./events.js";
import { ProblemError } from "./problem.js";
import { readEvents } from "./sse.js";
/** Between the first tries to connect where the shop says nothing, and the longest. Milliseconds. */
const FIRST_RETRY_DELAY = 250;
const MAX_RETRY_DELAY = 30_000;
/** A stream that is silent for so long is lost: the shop sends something about every 10 s. Milliseconds. */
const SILENCE_TIMEOUT = 30_000;
export class AllEvents {
    shop;
    handlers;
    options;
    #cursor;
    #state = "waiting";
    #retryDelay = FIRST_RETRY_DELAY;
    #connection = new AbortController();
    /** True while the next stream starts without the events since the last one. */
    #hasGap = false;
    constructor(shop, handlers, options = {}) {
        this.shop = shop;
        this.handlers = handlers;
        this.options = options;
        this.#cursor = options.after;
        this.#run().catch((error) => this.#fail(error));
    }
    /** The position to resume from in a later run. */
    get cursor() {
        return this.#cursor;
    }
    get state() {
        return this.#state;
    }
    close() {
        this.#enter("closed");
        this.#connection.abort();
    }
    async #run() {
        for (let tries = 0; !this.#isClosed(); tries += 1) {
            if (tries > 0)
                await sleep(backoff(tries - 1, this.#retryDelay, MAX_RETRY_DELAY));
            if (this.#isClosed())
                return;
            this.#connection = new AbortController();
            const stream = await this.#connect();
            if (stream !== undefined) {
                tries = 0;
                await this.#follow(stream);
            }
            if (!this.#isClosed())
                this.#enter("waiting");
        }
    }
    /** Opens a stream. Returns undefined where a later try may succeed, and throws where none will. */
    async #connect() {
        const { status } = this.options;
        const params = {
            query: status === undefined ? {} : { status },
            header: this.#cursor === undefined ? {} : { "Last-Event-ID": this.#cursor },
        };
        try {
            const { signal } = this.#connection;
            const body = await this.shop.get("/api/v1/admin/orders/stream", { params, signal, parseAs: "stream" });
            // The types know the document alone, where the content is a text.
            return body;
        }
        catch (error) {
            if (!(error instanceof ProblemError))
                return undefined;
            if (error.code === "cursor_out_of_range") {
                this.#cursor = undefined;
                this.#hasGap = true;
            }
            else if ([400, 401, 403].includes(error.status)) {
                throw error;
            }
            return undefined;
        }
    }
    /** Serves one stream until it ends. */
    async #follow(stream) {
        const connection = this.#connection;
        const abandon = () => connection.abort();
        let silence = setTimeout(abandon, SILENCE_TIMEOUT);
        this.#enter("open");
        if (this.#hasGap)
            this.handlers.onReset?.();
        this.#hasGap = false;
        const events = readEvents(stream);
        // A stream that breaks ends here as one that is closed.
        const next = () => events.next().catch(() => ({ done: true, value: undefined }));
        try {
            for (let event = await next(); !event.done && !this.#isClosed(); event = await next()) {
                clearTimeout(silence);
                silence = setTimeout(abandon, SILENCE_TIMEOUT);
                this.#receive(event.value);
            }
        }
        finally {
            clearTimeout(silence);
            connection.abort();
        }
        // A stream that ends before its first position cannot be resumed.
        this.#hasGap = this.#cursor === undefined;
    }
    #receive({ id, data, retry }) {
        if (retry !== undefined)
            this.#retryDelay = retry;
        if (data) {
            const frame = JSON.parse(data);
            if (frame.type === "order")
                this.handlers.onOrder(frame);
            else if (frame.type === "close" && isFinal(frame.content.code)) {
                throw new Error(`the shop closed the stream: ${frame.content.code} ${frame.content.reason}`);
            }
        }
        if (id !== undefined)
            this.#cursor = id;
    }
    #isClosed() {
        return this.#state === "closed";
    }
    #fail(error) {
        if (this.#isClosed())
            return;
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

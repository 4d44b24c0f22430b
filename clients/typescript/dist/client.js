// REST: typed calls that throw ProblemError, renew the access token, and send a write again without doing it twice.
import createFetchClient, {} from "openapi-fetch";
import { backoff, sleep } from "./backoff.js";
import { LiveEvents } from "./events.js";
import { ProblemError, retryAfter } from "./problem.js";
import { Session } from "./session.js";
/** Between the first tries of a request, and the longest. Milliseconds. */
const FIRST_RETRY_DELAY = 200;
const MAX_RETRY_DELAY = 5_000;
const LOGIN = "/auth/login";
/** Requests that tell a token of their own, or give one. */
const OPEN = [LOGIN, "/auth/register", "/auth/refresh"];
/** The header that names a device which has signed in before, both ways. */
const DEVICE_TOKEN = "device-token";
/** Refusals of a token after which its user must sign in again: the session has ended, or is of another shop. */
const LOST = ["session_revoked", "unauthenticated"];
export class Shoppee {
    get;
    post;
    put;
    patch;
    delete;
    /** The address of the shop, without a slash at its end. */
    url;
    #session;
    #fetch;
    #retries;
    #onDeviceToken;
    #deviceToken;
    constructor(options) {
        this.url = options.url.replace(/\/+$/, "");
        this.#fetch = options.fetch ?? ((request) => globalThis.fetch(request));
        this.#retries = options.retries ?? 2;
        this.#deviceToken = options.deviceToken;
        this.#onDeviceToken = options.onDeviceToken ?? (() => { });
        const client = createFetchClient({ baseUrl: this.url, fetch: (request) => this.#send(request) });
        const call = (method) => {
            // The types of openapi-fetch do not follow a method that is a parameter; `Call` says the same of each.
            const send = client[method];
            return (async (path, init) => (await send(path, init)).data);
        };
        this.get = call("GET");
        this.post = call("POST");
        this.put = call("PUT");
        this.patch = call("PATCH");
        this.delete = call("DELETE");
        this.#session = new Session((refresh_token) => this.post("/api/v1/auth/refresh", { body: { refresh_token } }), options.onTokens ?? (() => { }), options.tokens, options.tokensAge);
    }
    /** The tokens of the signed-in user. */
    get tokens() {
        return this.#session.tokens;
    }
    /** Signs in; all calls after it are the user's. */
    async signIn(username, password) {
        const tokens = await this.post("/api/v1/auth/login", { body: { username, password } });
        this.#session.set(tokens);
        return tokens;
    }
    /** Ends the session, here and in the shop. One that the shop has ended already is no error. */
    async signOut() {
        if (this.tokens === undefined)
            return;
        await this.post("/api/v1/auth/logout").catch((error) => {
            if (!(error instanceof ProblemError && error.status === 401))
                throw error;
        });
        if (this.tokens !== undefined)
            this.#session.set(undefined);
    }
    /** Opens the socket of the signed-in user; see LiveEvents. */
    events(handlers, options = {}) {
        const ticket = async () => (await this.post("/api/v1/auth/ws-ticket")).ticket;
        return new LiveEvents(`${this.url.replace(/^http/, "ws")}/ws`, ticket, handlers, options);
    }
    /** Sends a request with what it lacks, again where that is safe, and throws what is no success. */
    async #send(request) {
        const headers = new Headers(request.headers);
        // What the shop cannot tell apart from a first request, it must know by a key.
        if (["POST", "PATCH"].includes(request.method) && !headers.has("idempotency-key")) {
            headers.set("idempotency-key", newKey());
        }
        const open = OPEN.some((path) => request.url.endsWith(path));
        const device = request.url.endsWith(LOGIN) ? this.#deviceToken : undefined;
        if (device !== undefined)
            headers.set(DEVICE_TOKEN, device);
        for (let tries = 0, renewed = false;;) {
            const token = open ? undefined : await this.#session.accessToken();
            if (token !== undefined)
                headers.set("authorization", `Bearer ${token}`);
            const response = await this.#fetch(new Request(request.clone(), { headers })).catch((error) => {
                if (request.signal.aborted || tries >= this.#retries)
                    throw error;
                return undefined;
            });
            if (response?.ok || response?.status === 304) {
                this.#keepDeviceToken(response.headers.get(DEVICE_TOKEN));
                return response;
            }
            if (response?.status === 503 && tries < this.#retries) {
                await sleep(delay(tries, response));
                tries += 1;
            }
            else if (response === undefined) {
                await sleep(delay(tries));
                tries += 1;
            }
            else {
                const problem = await ProblemError.from(response);
                if (LOST.includes(problem.code) && token !== undefined)
                    this.#session.end(token);
                if (problem.code !== "token_expired" || token === undefined || renewed)
                    throw problem;
                await this.#session.renewed(token);
                renewed = true;
            }
        }
    }
    #keepDeviceToken(token) {
        if (token === null)
            return;
        this.#deviceToken = token;
        this.#onDeviceToken(token);
    }
}
/** Returns how long to wait before a request is sent again: at least what the shop says. Milliseconds. */
function delay(tries, response) {
    const asked = response === undefined ? undefined : retryAfter(response);
    return (asked ?? 0) * 1000 + backoff(tries, FIRST_RETRY_DELAY, MAX_RETRY_DELAY);
}
/** Returns a key that nobody else uses. Only Node 18, and pages that came without TLS, have no `randomUUID`. */
function newKey() {
    const random = () => Math.random().toString(36).slice(2);
    return globalThis.crypto?.randomUUID?.() ?? [random(), random(), random()].join("-");
}

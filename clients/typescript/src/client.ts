// REST: typed calls that throw ProblemError, renew the access token, and send a write again without doing it twice.

import createFetchClient, { type Client, type FetchResponse, type MaybeOptionalInit } from "openapi-fetch";
import type { MediaType, PathsWithMethod, RequiredKeysOf } from "openapi-typescript-helpers";
import { backoff, sleep } from "./backoff.js";
import { LiveEvents, type EventHandlers, type EventOptions } from "./events.js";
import { ProblemError, retryAfter, type ProblemCode } from "./problem.js";
import type { paths } from "./schema.js";
import { Session, type Tokens } from "./session.js";

export interface ClientOptions {
  /** The shop's own address, as `https://shop.example`. */
  url: string;
  /** Tokens of an earlier run. */
  tokens?: Tokens;
  /** How long ago these tokens were given. Milliseconds. */
  tokensAge?: number;
  /** Called with each new pair of tokens, and with undefined when the session has ended: where they are kept, if at all. */
  onTokens?: (tokens: Tokens | undefined) => void;
  /** The token of this device from an earlier sign-in: with it, strangers' wrong passwords lock nobody out here. */
  deviceToken?: string;
  /** Called with the token of this device after each sign-in: where it is kept, if at all. */
  onDeviceToken?: (token: string) => void;
  /** Instead of the global one. */
  fetch?: (request: Request) => Promise<Response>;
  /** How often a request that got no answer, or 503, is sent again; 2 where absent. */
  retries?: number;
}

type Method = "get" | "post" | "put" | "patch" | "delete";

/** The body of the success of an operation. */
type Body<Path extends keyof paths, M extends Method> = Extract<
  FetchResponse<Extract<paths[Path][M], Record<string | number, unknown>>, Record<never, never>, MediaType>,
  { error?: never }
>["data"];

/** A call that returns the body of a success, and throws ProblemError otherwise. */
type Call<M extends Method> = <
  Path extends PathsWithMethod<paths, M>,
  Init extends MaybeOptionalInit<paths[Path], M>,
>(
  path: Path,
  ...init: RequiredKeysOf<Init> extends never ? [init?: Init] : [init: Init]
) => Promise<Body<Path, M>>;

/** Between the first tries of a request, and the longest. Milliseconds. */
const FIRST_RETRY_DELAY = 200;
const MAX_RETRY_DELAY = 5_000;
const LOGIN = "/auth/login";
/** Requests that tell a token of their own, or give one. */
const OPEN = [LOGIN, "/auth/register", "/auth/refresh"];
/** The header that names a device which has signed in before, both ways. */
const DEVICE_TOKEN = "device-token";
/** Refusals of a token after which its user must sign in again: the session has ended, or is of another shop. */
const LOST: ProblemCode[] = ["session_revoked", "unauthenticated"];

export class Shoppee {
  readonly get: Call<"get">;
  readonly post: Call<"post">;
  readonly put: Call<"put">;
  readonly patch: Call<"patch">;
  readonly delete: Call<"delete">;
  /** The address of the shop, without a slash at its end. */
  readonly url: string;
  readonly #session: Session;
  readonly #fetch: (request: Request) => Promise<Response>;
  readonly #retries: number;
  readonly #onDeviceToken: (token: string) => void;
  #deviceToken: string | undefined;

  constructor(options: ClientOptions) {
    this.url = options.url.replace(/\/+$/, "");
    this.#fetch = options.fetch ?? ((request) => globalThis.fetch(request));
    this.#retries = options.retries ?? 2;
    this.#deviceToken = options.deviceToken;
    this.#onDeviceToken = options.onDeviceToken ?? (() => {});
    const client = createFetchClient<paths>({ baseUrl: this.url, fetch: (request) => this.#send(request) });
    const call = <M extends Method>(method: Uppercase<M>): Call<M> => {
      // The types of openapi-fetch do not follow a method that is a parameter; `Call` says the same of each.
      const send = client[method as keyof Client<paths>] as (path: string, init?: object) => Promise<{ data?: unknown }>;
      return (async (path: string, init?: object) => (await send(path, init)).data) as Call<M>;
    };
    this.get = call<"get">("GET");
    this.post = call<"post">("POST");
    this.put = call<"put">("PUT");
    this.patch = call<"patch">("PATCH");
    this.delete = call<"delete">("DELETE");
    this.#session = new Session(
      (refresh_token) => this.post("/api/v1/auth/refresh", { body: { refresh_token } }),
      options.onTokens ?? (() => {}),
      options.tokens,
      options.tokensAge,
    );
  }

  /** The tokens of the signed-in user. */
  get tokens(): Tokens | undefined {
    return this.#session.tokens;
  }

  /** Signs in; all calls after it are the user's. */
  async signIn(username: string, password: string): Promise<Tokens> {
    const tokens = await this.post("/api/v1/auth/login", { body: { username, password } });
    this.#session.set(tokens);
    return tokens;
  }

  /** Ends the session, here and in the shop. One that the shop has ended already is no error. */
  async signOut(): Promise<void> {
    if (this.tokens === undefined) return;
    await this.post("/api/v1/auth/logout").catch((error: unknown) => {
      if (!(error instanceof ProblemError && error.status === 401)) throw error;
    });
    if (this.tokens !== undefined) this.#session.set(undefined);
  }

  /** Opens the socket of the signed-in user; see LiveEvents. */
  events(handlers: EventHandlers, options: EventOptions = {}): LiveEvents {
    const ticket = async () => (await this.post("/api/v1/auth/ws-ticket")).ticket;
    return new LiveEvents(`${this.url.replace(/^http/, "ws")}/ws`, ticket, handlers, options);
  }

  /** Sends a request with what it lacks, again where that is safe, and throws what is no success. */
  async #send(request: Request): Promise<Response> {
    const headers = new Headers(request.headers);
    // What the shop cannot tell apart from a first request, it must know by a key.
    if (["POST", "PATCH"].includes(request.method) && !headers.has("idempotency-key")) {
      headers.set("idempotency-key", newKey());
    }
    const open = OPEN.some((path) => request.url.endsWith(path));
    const device = request.url.endsWith(LOGIN) ? this.#deviceToken : undefined;
    if (device !== undefined) headers.set(DEVICE_TOKEN, device);
    for (let tries = 0, renewed = false; ; ) {
      const token = open ? undefined : await this.#session.accessToken();
      if (token !== undefined) headers.set("authorization", `Bearer ${token}`);
      const response = await this.#fetch(new Request(request.clone(), { headers })).catch((error: unknown) => {
        if (request.signal.aborted || tries >= this.#retries) throw error;
        return undefined;
      });
      if (response?.ok || response?.status === 304) {
        this.#keepDeviceToken(response.headers.get(DEVICE_TOKEN));
        return response;
      }
      if (response?.status === 503 && tries < this.#retries) {
        await sleep(delay(tries, response));
        tries += 1;
      } else if (response === undefined) {
        await sleep(delay(tries));
        tries += 1;
      } else {
        const problem = await ProblemError.from(response);
        if (LOST.includes(problem.code) && token !== undefined) this.#session.end(token);
        if (problem.code !== "token_expired" || token === undefined || renewed) throw problem;
        await this.#session.renewed(token);
        renewed = true;
      }
    }
  }

  #keepDeviceToken(token: string | null): void {
    if (token === null) return;
    this.#deviceToken = token;
    this.#onDeviceToken(token);
  }
}

/** Returns how long to wait before a request is sent again: at least what the shop says. Milliseconds. */
function delay(tries: number, response?: Response): number {
  const asked = response === undefined ? undefined : retryAfter(response);
  return (asked ?? 0) * 1000 + backoff(tries, FIRST_RETRY_DELAY, MAX_RETRY_DELAY);
}

/** Returns a key that nobody else uses. Only Node 18, and pages that came without TLS, have no `randomUUID`. */
function newKey(): string {
  const random = () => Math.random().toString(36).slice(2);
  return globalThis.crypto?.randomUUID?.() ?? [random(), random(), random()].join("-");
}

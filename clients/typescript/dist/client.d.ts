import { type FetchResponse, type MaybeOptionalInit } from "openapi-fetch";
import type { MediaType, PathsWithMethod, RequiredKeysOf } from "openapi-typescript-helpers";
import { LiveEvents, type EventHandlers, type EventOptions } from "./events.js";
import type { paths } from "./schema.js";
import { type Tokens } from "./session.js";
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
type Body<Path extends keyof paths, M extends Method> = Extract<FetchResponse<Extract<paths[Path][M], Record<string | number, unknown>>, Record<never, never>, MediaType>, {
    error?: never;
}>["data"];
/** A call that returns the body of a success, and throws ProblemError otherwise. */
type Call<M extends Method> = <Path extends PathsWithMethod<paths, M>, Init extends MaybeOptionalInit<paths[Path], M>>(path: Path, ...init: RequiredKeysOf<Init> extends never ? [init?: Init] : [init: Init]) => Promise<Body<Path, M>>;
export declare class Shoppee {
    #private;
    readonly get: Call<"get">;
    readonly post: Call<"post">;
    readonly put: Call<"put">;
    readonly patch: Call<"patch">;
    readonly delete: Call<"delete">;
    /** The address of the shop, without a slash at its end. */
    readonly url: string;
    constructor(options: ClientOptions);
    /** The tokens of the signed-in user. */
    get tokens(): Tokens | undefined;
    /** Signs in; all calls after it are the user's. */
    signIn(username: string, password: string): Promise<Tokens>;
    /** Ends the session, here and in the shop. One that the shop has ended already is no error. */
    signOut(): Promise<void>;
    /** Opens the socket of the signed-in user; see LiveEvents. */
    events(handlers: EventHandlers, options?: EventOptions): LiveEvents;
}
export {};

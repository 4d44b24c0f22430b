import type { components } from "./schema.js";
export type Tokens = components["schemas"]["Tokens"];
/** Keeps one pair of tokens. Of all requests that need a newer access token at once, one renews it. */
export declare class Session {
    #private;
    private readonly renew;
    private readonly onTokens;
    constructor(renew: (refreshToken: string) => Promise<Tokens>, onTokens: (tokens: Tokens | undefined) => void);
    get tokens(): Tokens | undefined;
    /** Takes new tokens. `age` is how long ago they were given, in milliseconds. */
    set(tokens: Tokens | undefined, age?: number): void;
    /** Returns an access token that is good for now; undefined where nobody is signed in. */
    accessToken(): Promise<string | undefined>;
    /** Replaces `refused`, unless that was done already. Throws the ProblemError of a session that has ended. */
    renewed(refused: string): Promise<void>;
}

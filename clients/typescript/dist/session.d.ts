import type { components } from "./schema.js";
export type Tokens = components["schemas"]["Tokens"];
/** Keeps one pair of tokens. Of all requests that need a newer access token at once, one renews it. */
export declare class Session {
    #private;
    private readonly renew;
    private readonly onTokens;
    /** Begins with `tokens` that were given `age` milliseconds ago, in an earlier run, and does not report them. */
    constructor(renew: (refreshToken: string) => Promise<Tokens>, onTokens: (tokens: Tokens | undefined) => void, tokens: Tokens | undefined, age?: number);
    get tokens(): Tokens | undefined;
    /** Takes new tokens, or none where the session has ended, and reports them. */
    set(tokens: Tokens | undefined): void;
    /** Forgets the tokens, unless others have replaced the one that was refused. */
    end(refused: string): void;
    /** Returns an access token that is good for now; undefined where nobody is signed in. */
    accessToken(): Promise<string | undefined>;
    /** Replaces `refused`, unless that was done already. Throws the ProblemError of a session that has ended. */
    renewed(refused: string): Promise<void>;
}

// The tokens of a signed-in user, and their renewal.

import type { components } from "./schema.js";
import { ProblemError } from "./problem.js";

export type Tokens = components["schemas"]["Tokens"];

/** How long before its end an access token is renewed. Milliseconds. */
const RENEWAL_MARGIN = 30_000;

/** Keeps one pair of tokens. Of all requests that need a newer access token at once, one renews it. */
export class Session {
  #tokens: Tokens | undefined;
  #endsAt = 0;
  #renewal: Promise<void> | undefined;

  /** Begins with `tokens` that were given `age` milliseconds ago, in an earlier run, and does not report them. */
  constructor(
    private readonly renew: (refreshToken: string) => Promise<Tokens>,
    private readonly onTokens: (tokens: Tokens | undefined) => void,
    tokens: Tokens | undefined,
    age = 0,
  ) {
    this.#keep(tokens, age);
  }

  get tokens(): Tokens | undefined {
    return this.#tokens;
  }

  /** Takes new tokens, or none where the session has ended, and reports them. */
  set(tokens: Tokens | undefined): void {
    this.#keep(tokens, 0);
    this.onTokens(tokens);
  }

  /** Forgets the tokens, unless others have replaced the one that was refused. */
  end(refused: string): void {
    if (this.#tokens?.access_token === refused) this.set(undefined);
  }

  /** Returns an access token that is good for now; undefined where nobody is signed in. */
  async accessToken(): Promise<string | undefined> {
    if (this.#tokens !== undefined && Date.now() > this.#endsAt - RENEWAL_MARGIN) {
      await this.renewed(this.#tokens.access_token);
    }
    return this.#tokens?.access_token;
  }

  /** Replaces `refused`, unless that was done already. Throws the ProblemError of a session that has ended. */
  async renewed(refused: string): Promise<void> {
    if (this.#tokens === undefined || this.#tokens.access_token !== refused) return;
    const { refresh_token } = this.#tokens;
    this.#renewal ??= this.renew(refresh_token)
      .then(
        (tokens) => this.set(tokens),
        (error: unknown) => {
          if (error instanceof ProblemError && error.status === 401) this.set(undefined);
          throw error;
        },
      )
      .finally(() => (this.#renewal = undefined));
    await this.#renewal;
  }

  #keep(tokens: Tokens | undefined, age: number): void {
    this.#tokens = tokens;
    this.#endsAt = tokens === undefined ? 0 : Date.now() - age + tokens.expires_in * 1000;
  }
}

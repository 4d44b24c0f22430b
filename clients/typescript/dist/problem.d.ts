import type { components } from "./schema.js";
export type Problem = components["schemas"]["Problem"];
export type ProblemCode = components["schemas"]["ProblemCode"];
/** An answer that is no success. A program goes by `code`; `problem` has the members of the code. */
export declare class ProblemError extends Error {
    readonly problem: Problem;
    /** Seconds after which the shop lets the request be sent again, where it says so. */
    readonly retryAfter: number | undefined;
    readonly name = "ProblemError";
    constructor(problem: Problem, 
    /** Seconds after which the shop lets the request be sent again, where it says so. */
    retryAfter: number | undefined);
    get code(): ProblemCode;
    get status(): number;
    /** Which fields of the request are wrong, and why. */
    get errors(): NonNullable<Problem["errors"]>;
    /** The id under which the shop's log has the request. */
    get requestId(): string;
    /** Reads the problem of a response. One that is no problem, as of a proxy, becomes `unavailable` or `internal`. */
    static from(response: Response): Promise<ProblemError>;
}
/** Reads `Retry-After`, in seconds. */
export declare function retryAfter(response: Response): number | undefined;

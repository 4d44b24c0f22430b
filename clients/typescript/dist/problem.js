// The errors of the shop (RFC 9457), as exceptions.
/** An answer that is no success. A program goes by `code`; `problem` has the members of the code. */
export class ProblemError extends Error {
    problem;
    retryAfter;
    name = "ProblemError";
    constructor(problem, 
    /** Seconds after which the shop lets the request be sent again, where it says so. */
    retryAfter) {
        super(`${problem.code}: ${problem.detail}`);
        this.problem = problem;
        this.retryAfter = retryAfter;
    }
    get code() {
        return this.problem.code;
    }
    get status() {
        return this.problem.status;
    }
    /** Which fields of the request are wrong, and why. */
    get errors() {
        return this.problem.errors ?? [];
    }
    /** The id under which the shop's log has the request. */
    get requestId() {
        return this.problem.request_id;
    }
    /** Reads the problem of a response. One that is no problem, as of a proxy, becomes `unavailable` or `internal`. */
    static async from(response) {
        const delay = retryAfter(response);
        const type = response.headers.get("content-type") ?? "";
        if (type.startsWith("application/problem+json")) {
            return new ProblemError((await response.json()), delay);
        }
        const code = [502, 503, 504].includes(response.status) ? "unavailable" : "internal";
        const problem = {
            type: "about:blank",
            title: response.statusText,
            status: response.status,
            detail: `the answer is not of the shop: ${response.status} ${type}`,
            code,
            request_id: response.headers.get("x-request-id") ?? "",
        };
        return new ProblemError(problem, delay);
    }
}
/** Reads `Retry-After`, in seconds. */
export function retryAfter(response) {
    const value = response.headers.get("retry-after");
    return value !== null && /^\d+$/.test(value) ? Number(value) : undefined;
}

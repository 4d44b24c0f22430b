/** Returns the delay before a try, in milliseconds: between 0 and `first` doubled with each earlier try, at most `most`. */
export declare function backoff(tries: number, first: number, most: number): number;
export declare function sleep(milliseconds: number): Promise<void>;

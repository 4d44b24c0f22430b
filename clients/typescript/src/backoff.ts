// Exponential backoff with full jitter: clients that lost the same server do not return at the same moment.

/** Returns the delay before a try, in milliseconds: between 0 and `first` doubled with each earlier try, at most `most`. */
export function backoff(tries: number, first: number, most: number): number {
  return Math.random() * Math.min(most, first * 2 ** Math.min(tries, 30));
}

export function sleep(milliseconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}

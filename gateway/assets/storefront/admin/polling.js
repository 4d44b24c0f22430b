// Reads that are repeated while the page is visible.

import { useEffect, useRef, useState } from "../html.js";
import { report } from "../shop.js";
import { isRetryable } from "../writes.js";

/** Calls `read` now, after each change of `key`, and every `interval` milliseconds. Returns its result and a refresh. */
export function usePolling(read, key, interval) {
  const [result, setResult] = useState();
  const current = useRef(read);
  current.current = read;
  const refresh = useRef(() => {});
  useEffect(() => {
    let isOver = false;
    let timer;
    const poll = async () => {
      clearTimeout(timer);
      if (!document.hidden) {
        try {
          const next = await current.current();
          if (!isOver) setResult(next);
        } catch (error) {
          if (!isOver && !isRetryable(error)) report(error);
        }
      }
      // Of two polls that overlap, the later one sets the time of the next.
      clearTimeout(timer);
      if (!isOver) timer = setTimeout(poll, interval);
    };
    refresh.current = poll;
    poll();
    document.addEventListener("visibilitychange", poll);
    return () => {
      isOver = true;
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", poll);
    };
  }, [key, interval]);
  return [result, () => refresh.current()];
}

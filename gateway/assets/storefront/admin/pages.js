// Lists that are read page by page.

import { ActionButton } from "../components.js";
import { html, useEffect, useState } from "../html.js";
import { t } from "../i18n.js";
import { report } from "../shop.js";
import { isRetryable, retry } from "../writes.js";

/** Calls `read` with the cursor of a page. Returns the items so far, and functions that read the next page and all again. */
export function usePages(read, key) {
  const [list, setList] = useState({});
  const [version, setVersion] = useState(0);
  useEffect(() => {
    let isOver = false;
    retry(() => read(undefined), () => isOver).then(
      (page) => isOver || setList({ items: page.items, cursor: page.next_cursor, key }),
      (error) => isOver || isRetryable(error) || report(error),
    );
    return () => (isOver = true);
  }, [key, version]);
  const more = async () => {
    const page = await read(list.cursor);
    setList((now) => (now === list ? { ...now, items: [...now.items, ...page.items], cursor: page.next_cursor } : now));
  };
  const isOfKey = list.key === key;
  return {
    items: isOfKey ? list.items : undefined,
    more: isOfKey && list.cursor ? more : undefined,
    refresh: () => setVersion((now) => now + 1),
  };
}

/** A button that reads the next page, if there is one. */
export function More({ more }) {
  return more && html`<p class="more"><${ActionButton} action=${more} onError=${report}>${t("catalogue.more")}<//></p>`;
}

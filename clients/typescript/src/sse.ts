// A parser of Server-Sent Events (HTML, "Server-sent events"), for streams that need a header, which `EventSource` cannot send.

/** A block of a stream. One without `data` moves the position only. */
export interface ServerSentEvent {
  id?: string;
  data?: string;
  /** The delay before a client reconnects. Milliseconds. */
  retry?: number;
}

/** Reads the blocks of a stream until its end. Comments are empty blocks: signs of life. */
export async function* readEvents(body: ReadableStream<Uint8Array>): AsyncGenerator<ServerSentEvent, void> {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let text = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      text += decoder.decode(value, { stream: true });
      // A carriage return at the end may be half of a line break.
      const end = text.endsWith("\r") ? text.length - 1 : text.length;
      const blocks = text.slice(0, end).split(/(?:\r\n|\n|\r(?!\n)){2}/);
      text = (blocks.pop() ?? "") + text.slice(end);
      for (const block of blocks) yield parseBlock(block);
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}

function parseBlock(block: string): ServerSentEvent {
  const event: ServerSentEvent = {};
  for (const line of block.split(/\r\n|\n|\r/)) {
    const [, field, value = ""] = /^([^:]*)(?:: ?(.*))?$/s.exec(line) ?? [];
    if (field === "data") event.data = event.data === undefined ? value : `${event.data}\n${value}`;
    else if (field === "id" && !value.includes("\0")) event.id = value;
    else if (field === "retry" && /^\d+$/.test(value)) event.retry = Number(value);
  }
  return event;
}

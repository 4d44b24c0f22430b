/** A block of a stream. One without `data` moves the position only. */
export interface ServerSentEvent {
    id?: string;
    data?: string;
    /** The delay before a client reconnects. Milliseconds. */
    retry?: number;
}
/** Reads the blocks of a stream until its end. Comments are empty blocks: signs of life. */
export declare function readEvents(body: ReadableStream<Uint8Array>): AsyncGenerator<ServerSentEvent, void>;

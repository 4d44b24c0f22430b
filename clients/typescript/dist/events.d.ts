import type { components } from "./schema.js";
type OrderFrame = components["schemas"]["OrderFrame"];
/** What the constructor of a WebSocket must do: that of browsers and of Node 22, or the one of the package `ws`. */
export type WebSocketConstructor = new (url: string, protocols: string[]) => WebSocket;
/** `open`: events arrive. `waiting`: the socket is lost and is connected again. `closed`: for good. */
export type EventState = "waiting" | "open" | "closed";
export interface EventHandlers {
    /** A step of an order: each once, in order, without a gap. */
    onOrder(frame: OrderFrame): void;
    /** Events were missed that cannot be replayed: read the orders by REST. */
    onReset?(seq: number): void;
    onState?(state: EventState): void;
    /** Why the events are closed for good: the session has ended, or the shop refuses this client. */
    onError?(error: Error): void;
}
export interface EventOptions {
    /** The last `seq` that was seen, in an earlier run perhaps: what came after it is delivered first. */
    after?: number;
    /** Instead of the global one. */
    WebSocket?: WebSocketConstructor;
}
/** Closing codes from which the shop lets no client return. */
export declare const isFinal: (code: number) => boolean;
export declare class LiveEvents {
    #private;
    private readonly url;
    private readonly ticket;
    private readonly handlers;
    constructor(url: string, ticket: () => Promise<string>, handlers: EventHandlers, options: EventOptions);
    /** The number of the last event; the position to resume from in a later run. */
    get seq(): number | undefined;
    get state(): EventState;
    close(): void;
}
export {};

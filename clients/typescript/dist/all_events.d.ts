import type { Shoppee } from "./client.js";
import { type EventState } from "./events.js";
import type { components } from "./schema.js";
type OrderFrame = components["schemas"]["OrderFrame"];
type OrderStatus = components["schemas"]["OrderStatus"];
export interface AllEventsHandlers {
    /** A step of an order of any user: each once, those of one user in order. */
    onOrder(frame: OrderFrame): void;
    /** Events were missed that cannot be replayed: read the orders by REST. */
    onReset?(): void;
    onState?(state: EventState): void;
    /** Why the events are closed for good: the session has ended, or the shop refuses this client. */
    onError?(error: Error): void;
}
export interface AllEventsOptions {
    /** The last `cursor`, of an earlier run perhaps: what came after it is delivered first. */
    after?: string;
    /** Only steps into this state. */
    status?: OrderStatus;
}
export declare class AllEvents {
    #private;
    private readonly shop;
    private readonly handlers;
    private readonly options;
    constructor(shop: Shoppee, handlers: AllEventsHandlers, options?: AllEventsOptions);
    /** The position to resume from in a later run. */
    get cursor(): string | undefined;
    get state(): EventState;
    close(): void;
}
export {};

// The client of a Shoppee shop. `schema.ts` is generated from the shop's OpenAPI document; README.md shows the use.

import type { components } from "./schema.js";

export { Shoppee, type ClientOptions } from "./client.js";
export { LiveEvents, type EventHandlers, type EventOptions, type EventState, type WebSocketConstructor } from "./events.js";
export { ProblemError, type Problem, type ProblemCode } from "./problem.js";
export type { Tokens } from "./session.js";
export type { components, operations, paths } from "./schema.js";

type Schemas = components["schemas"];
export type Address = Schemas["AddressInput"];
export type Cart = Schemas["Cart"];
export type Category = Schemas["Category"];
export type Order = Schemas["Order"];
export type OrderFrame = Schemas["OrderFrame"];
export type OrderStatus = Schemas["OrderStatus"];
export type Product = Schemas["Product"];
export type User = Schemas["User"];

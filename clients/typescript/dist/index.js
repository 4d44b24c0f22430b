// The client of a Shoppee shop. `schema.ts` is generated from the shop's OpenAPI document; README.md shows the use.
export { Shoppee } from "./client.js";
export { LiveEvents } from "./events.js";
export { ProblemError } from "./problem.js";

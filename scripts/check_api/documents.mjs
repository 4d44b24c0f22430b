// Checks the documents of a running gateway: openapi.json with the rules of Spectral and Redocly, asyncapi.json with the
// parser of AsyncAPI. Prints the findings; exits with 1 if one is not in ACCEPTED, or if an exception is not needed.
//
// documents.mjs OPENAPI ASYNCAPI; NODE_TOOLS names the folder of the packages.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const require = createRequire(`${process.env.NODE_TOOLS}/`);
const { Parser } = require("@asyncapi/parser");
const { Spectral, Document } = require("@stoplight/spectral-core");
const { Json } = require("@stoplight/spectral-parsers");
const { oas } = require("@stoplight/spectral-rulesets");
const { createConfig, lintFromString } = require("@redocly/openapi-core");

const ACCEPTED = [
  // The success of a handshake is 101.
  { rule: "operation-success-response", at: "paths./ws.get.responses" },
  { rule: "operation-2xx-response", at: "#/paths/~1ws/get/responses" },
  // An extension of `GET /ws` names the frames, which Redocly does not follow.
  { rule: "no-unused-components", at: "#/components/schemas/ServerFrame" },
  { rule: "no-unused-components", at: "#/components/schemas/ClientFrame" },
];

async function spectral(text, path) {
  const linter = new Spectral();
  linter.setRuleset({ extends: [oas] });
  const found = await linter.run(new Document(text, Json, path));
  return found.map((one) => ({ rule: String(one.code), at: one.path.join("."), message: one.message }));
}

async function redocly(text, path) {
  const config = await createConfig({ extends: ["recommended"] });
  const found = await lintFromString({ source: text, absoluteRef: path, config });
  return found.map((one) => ({ rule: one.ruleId, at: one.location[0].pointer, message: one.message }));
}

async function asyncapi(text) {
  const { document, diagnostics } = await new Parser().parse(text);
  const found = diagnostics.map((one) => ({ rule: String(one.code), at: one.path.join("."), message: one.message }));
  if (!document && !found.length) found.push({ rule: "parse", at: "", message: "the document cannot be read" });
  return found;
}

const [openapiPath, asyncapiPath] = process.argv.slice(2);
const openapi = readFileSync(openapiPath, "utf8");
const found = [
  ...(await spectral(openapi, openapiPath)),
  ...(await redocly(openapi, openapiPath)),
  ...(await asyncapi(readFileSync(asyncapiPath, "utf8"))),
];
const is = (one, accepted) => one.rule === accepted.rule && one.at.startsWith(accepted.at);
const wrong = found.filter((one) => !ACCEPTED.some((accepted) => is(one, accepted)));
for (const { rule, at, message } of wrong) console.log(`${rule} at ${at}: ${message}`);
const unused = ACCEPTED.filter((accepted) => !found.some((one) => is(one, accepted)));
for (const { rule, at } of unused) console.log(`${rule} at ${at} is accepted and not found`);
if (wrong.length || unused.length) process.exit(1);
console.log("Spectral, Redocly and the AsyncAPI parser find nothing");

// A customer of the storefront in Chromium, at a device and in a language. SHOP is the address of the gateway, NODE_TOOLS the
// folder of the packages.

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { Page } from "./browser.mjs";

const { SHOP, NODE_TOOLS } = process.env;
/** Where the screenshots are kept. */
export const folder = process.argv[2];
/** The run file of the shop. */
export const runFile = process.argv[3];
export const { Shoppee } = await import(pathToFileURL(join(folder, "node_modules/@shoppee/client/dist/index.js")));
const axe = await readFile(join(NODE_TOOLS, "node_modules/axe-core/axe.min.js"), "utf8");

export const DESKTOP = { width: 1400, height: 900 };
export const PHONE = { width: 390, height: 844, isMobile: true, hasTouch: true };
export const PASSWORD = "a password for one run";
/** The maximum height of a screenshot of a whole page. A longer page, such as a list, is cut to the screen. Pixels. */
const MAX_SCREENSHOT_HEIGHT = 2_400;

/** Imports a module of messages. Node takes a file without a package for CommonJS. */
export async function readMessages(name) {
  const file = new URL(`../../gateway/assets/storefront/${name}.js`, import.meta.url);
  return import(`data:text/javascript,${encodeURIComponent(await readFile(file, "utf8"))}`);
}

/** A customer at a device, in a language. */
export class Customer extends Page {
  /** Opens a page of the shop, or another one that may use `servers`. */
  static async arrives(browser, { language, messages, viewport, name, url = SHOP, servers = [SHOP] }) {
    const context = await browser.createBrowserContext();
    const customer = await this.open(context, url, async (self) => {
      Object.assign(self, { messages, viewport, name, url, servers, foreign: [], username: `${name}-${randomUUID().slice(0, 12)}` });
      await self.page.setViewport(viewport);
      const userAgent = await browser.userAgent();
      await self.devtools.send("Emulation.setUserAgentOverride", { userAgent, acceptLanguage: language });
      self.page.on("request", (request) => {
        const { origin, protocol } = new URL(request.url());
        if (!servers.includes(origin) && protocol !== "data:" && protocol !== "blob:") self.foreign.push(request.url());
      });
    });
    return customer;
  }

  /** Tries the view by axe, checks that it fits the screen, and keeps a screenshot. */
  async isFine(view) {
    await this.page.evaluate(`${axe}; undefined`);
    const violations = await this.page.evaluate(async () => {
      const { violations } = await globalThis.axe.run(document, { resultTypes: ["violations"] });
      return violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html, failureSummary }) => `${html} ${failureSummary}`).join("; ")}`);
    });
    assert.deepEqual(violations, [], `axe on ${view}`);
    const width = await this.page.evaluate(() => document.documentElement.scrollWidth);
    assert.ok(width <= this.viewport.width, `${view} is ${width} px wide`);
    const height = await this.page.evaluate(() => document.documentElement.scrollHeight);
    await this.page.screenshot({ path: join(folder, `${this.name}-${view}.png`), fullPage: height < MAX_SCREENSHOT_HEIGHT });
  }

  message(name, values = {}) {
    const message = this.messages[name];
    if (typeof message === "function") return message(values);
    return message.replace(/\{(\w+)\}/g, (_, key) => values[key]);
  }

  /** Waits for a refusal: its sentence, and the browser's line of its status. */
  async isRefused(selector, status, sentence) {
    await this.shows(selector, sentence);
    await this.takesError(new RegExp(`status of ${status}`));
  }

  /** Moves the focus to an element by the keyboard alone. */
  async tabsTo(selector) {
    for (let presses = 0; presses < 120; presses += 1) {
      if (await this.page.evaluate((selector) => document.activeElement.matches(selector), selector)) return;
      await this.page.keyboard.press("Tab");
    }
    assert.fail(`the Tab key does not reach ${selector}`);
  }

  async types(selector, text) {
    await this.tabsTo(selector);
    await this.page.keyboard.type(text);
  }

  async presses(selector, key = "Enter") {
    await this.tabsTo(selector);
    await this.page.keyboard.press(key);
  }

  focus() {
    return this.page.evaluate(() => document.activeElement.tagName);
  }

  async goes(path) {
    await this.page.goto(SHOP + path);
  }

  async isOrdered() {
    await this.page.waitForFunction(() => /^\/shop\/orders\/.{36}$/.test(location.pathname));
    return this.page.evaluate(() => location.pathname.split("/").at(-1));
  }

  isAt(step) {
    return this.shows(`.timeline [data-status=${step}][data-done=true]`, this.messages[`step.${step}`]);
  }

  /** Signs the customer in as a program, for checks beyond the pages. */
  async client() {
    const client = new Shoppee({ url: SHOP });
    await client.signIn(this.username, PASSWORD);
    return client;
  }
}

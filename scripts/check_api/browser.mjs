// Chromium for the checks of pages. A Page collects the errors of its console, so that each is expected or fails its run.

import assert from "node:assert/strict";
import { createRequire } from "node:module";

const { CHROMIUM, NODE_TOOLS } = process.env;
const puppeteer = createRequire(`${NODE_TOOLS}/`)("puppeteer-core");

/** The longest that one condition may take. Milliseconds. */
export const STEP_TIMEOUT = 8_000;

/** Starts a browser with these arguments. */
export function launch(args = []) {
  // Chromium's sandbox does not work for root.
  const sandbox = process.getuid() === 0 ? ["--no-sandbox"] : [];
  return puppeteer.launch({ executablePath: CHROMIUM, args: [...args, ...sandbox] });
}

/** Waits for a condition of this process. */
export async function until(holds, what, timeout = STEP_TIMEOUT) {
  const end = Date.now() + timeout;
  while (!(await holds())) {
    assert.ok(Date.now() < end, `within ${timeout} ms: ${typeof what === "function" ? what() : what}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** A page in the browser, with the errors of its console. */
export class Page {
  errors = [];
  sockets = [];

  /** Opens `url` in a browser or in a browser's context, after `prepare`. */
  static async open(browser, url, prepare = async () => {}) {
    const self = new this();
    self.page = await browser.newPage();
    self.page.setDefaultTimeout(STEP_TIMEOUT);
    self.page.on("console", (message) => {
      if (message.type() === "error") self.errors.push(`${message.text()} ${message.location().url ?? ""}`);
    });
    self.page.on("pageerror", (error) => self.errors.push(`uncaught: ${error.message}`));
    self.devtools = await self.page.createCDPSession();
    self.devtools.on("Network.webSocketCreated", ({ url }) => self.sockets.push(url));
    await self.devtools.send("Network.enable");
    await prepare(self);
    await self.page.goto(url);
    return self;
  }

  fill(selector, value) {
    return this.page.locator(selector).fill(value);
  }

  click(selector) {
    return this.page.locator(selector).click();
  }

  /** Waits until an element is visible and its text has all of these. */
  async shows(selector, ...texts) {
    const holds = (selector, texts) => {
      const element = document.querySelector(selector);
      return element?.checkVisibility() === true && texts.every((text) => element.textContent.includes(text));
    };
    const wanted = `${selector} shows ${texts.join(", ")}`;
    await this.page.waitForFunction(holds, {}, selector, texts).catch((error) => assert.fail(`${wanted}: ${error.message}`));
  }

  /** Waits until no element is visible under the selector. */
  async hides(selector) {
    const holds = (selector) => !document.querySelector(selector)?.checkVisibility();
    await this.page.waitForFunction(holds, {}, selector).catch(() => assert.fail(`${selector} is still shown`));
  }

  /** Waits for an error on the console, which is no surprise then. */
  async takesError(pattern) {
    const isThere = () => this.errors.some((error) => pattern.test(error));
    await until(isThere, () => `${pattern} on the console: ${this.errors}`);
    this.errors.splice(this.errors.findIndex((error) => pattern.test(error)), 1);
  }

  /** Forgets the errors that a lost connection or a busy shop causes. The page sends such a request again. */
  forgetOutage() {
    const isOutage = (error) => /net::ERR_|WebSocket connection to|status of 50[34]/.test(error);
    this.errors = this.errors.filter((error) => !isOutage(error));
  }
}

// Languages: a catalogue of messages each, and the formats of money and time.

import { en } from "./messages/en.js";
import { zh } from "./messages/zh.js";
import { state, update } from "./store.js";

const CATALOGUES = { en, zh };
const LOCALES = { en: "en-GB", zh: "zh-CN" };
const CHOICE = "shoppee.lang";

export const LANGUAGES = [
  ["en", "English"],
  ["zh", "中文"],
];

/** Adds messages of a page of its own, by language. */
export function addMessages(byLanguage) {
  for (const [tag, messages] of Object.entries(byLanguage)) Object.assign(CATALOGUES[tag], messages);
}

/** Returns the chosen language, or the first of the browser's (its Accept-Language) that there is. */
function firstLanguage() {
  const wanted = [localStorage.getItem(CHOICE), ...navigator.languages].filter(Boolean);
  return wanted.map((tag) => tag.split("-")[0]).find((tag) => tag in CATALOGUES) ?? "en";
}

export let language = firstLanguage();

export function setLanguage(tag) {
  language = tag;
  localStorage.setItem(CHOICE, tag);
  document.documentElement.lang = LOCALES[tag];
  update({});
}
document.documentElement.lang = LOCALES[language];

export const hasMessage = (name) => name in CATALOGUES[language];

/** Returns a message. A message is a text with `{name}` for values, or a function of them. */
export function t(name, values = {}) {
  const message = CATALOGUES[language][name] ?? CATALOGUES.en[name] ?? name;
  if (typeof message === "function") return message(values);
  return message.replace(/\{(\w+)\}/g, (_, key) => values[key] ?? "");
}

/** Formats an amount, which the shop gives in minor units of the currency. */
export function money(amount, currency) {
  const format = new Intl.NumberFormat(LOCALES[language], { style: "currency", currency });
  return format.format(amount / 10 ** format.resolvedOptions().maximumFractionDigits);
}

/** Reads an amount as it is typed. Returns minor units; undefined where it is none. */
export function parseMoney(text, currency = shopCurrency()) {
  const [, whole, fraction = ""] = /^(\d+)(?:[.,](\d+))?$/.exec(String(text).trim()) ?? [];
  // A longer fraction is likely a separator of thousands.
  if (whole === undefined || fraction.length > digits(currency)) return undefined;
  return Number(whole + fraction.padEnd(digits(currency), "0"));
}

/** Returns an amount as it is typed, such as 19.90. */
export function typedMoney(amount, currency = shopCurrency()) {
  return (amount / 10 ** digits(currency)).toFixed(digits(currency));
}

function digits(currency) {
  const format = new Intl.NumberFormat("en", { style: "currency", currency });
  return format.resolvedOptions().maximumFractionDigits;
}

/** Returns the currency of the shop: all products have the same. */
export function shopCurrency() {
  for (const { currency } of state.products.values()) return currency;
  return "EUR";
}

export function number(value) {
  return new Intl.NumberFormat(LOCALES[language]).format(value);
}

export function dateTime(text, timeStyle = "short") {
  return new Intl.DateTimeFormat(LOCALES[language], { dateStyle: "medium", timeStyle }).format(new Date(text));
}

export function time(text) {
  return new Intl.DateTimeFormat(LOCALES[language], { timeStyle: "medium" }).format(new Date(text));
}

/** Returns the name of a country, or of a category, in the language of the page. */
export function countryName(code) {
  return new Intl.DisplayNames(LOCALES[language], { type: "region" }).of(code);
}

export const categoryName = ({ slug, name }) => (hasMessage(`category.${slug}`) ? t(`category.${slug}`) : name);

/** Translates a word of the demo shop's attributes; any other stays. */
export const word = (text) => (hasMessage(`word.${text}`) ? t(`word.${text}`) : text);

export const compare = (a, b) => a.localeCompare(b, LOCALES[language]);

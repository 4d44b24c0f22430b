// The checkout: the address, and the order as it will be placed.

import { Field, Form, SignInFirst, Title, useLoading } from "../components.js";
import { html, useState } from "../html.js";
import { compare, countryName, language, money, t } from "../i18n.js";
import { ADDRESS, loadCart, placeOrder, report } from "../shop.js";
import { state } from "../store.js";
import { isRetryable } from "../writes.js";
import { EmptyCart } from "./cart.js";

/** The alpha-2 codes of ISO 3166-1, two letters each. */
const COUNTRIES =
  "ADAEAFAGAIALAMAOAQARASATAUAWAXAZBABBBDBEBFBGBHBIBJBLBMBNBOBQBRBSBTBVBWBYBZCACCCDCFCGCHCICKCLCMCNCOCRCUCVCWCXCYCZDEDJDKDMDODZECEEEGEHERESETFIFJFKFMFOFRGAGBGDGEGFGGGHGIGLGMGNGPGQGRGSGTGUGWGYHKHMHNHRHTHUIDIEILIMINIOIQIRISITJEJMJOJPKEKGKHKIKMKNKPKRKWKYKZLALBLCLILKLRLSLTLULVLYMAMCMDMEMFMGMHMKMLMMMNMOMPMQMRMSMTMUMVMWMXMYMZNANCNENFNGNINLNONPNRNUNZOMPAPEPFPGPHPKPLPMPNPRPSPTPWPYQARERORSRURWSASBSCSDSESGSHSISJSKSLSMSNSOSRSSSTSVSXSYSZTCTDTFTGTHTJTKTLTMTNTOTRTTTVTWTZUAUGUMUSUYUZVAVCVEVGVIVNVUWFWSYEYTZAZMZW";

const FIELDS = [
  ["recipient", { autocomplete: "name", required: true }],
  ["line1", { autocomplete: "address-line1", required: true }],
  ["line2", { autocomplete: "address-line2" }],
  ["postal_code", { autocomplete: "postal-code", required: true }],
  ["city", { autocomplete: "address-level2", required: true }],
  ["region", { autocomplete: "address-level1" }],
  ["phone", { autocomplete: "tel", type: "tel" }],
];

function savedAddress() {
  const country = language === "zh" ? "CN" : "NL";
  return { country, ...JSON.parse(localStorage.getItem(ADDRESS) ?? "{}") };
}

export function Checkout() {
  const { user, cart } = state;
  const [address, setAddress] = useState(savedAddress);
  useLoading(loadCart, [user?.id]);
  if (!user) return html`<${SignInFirst} title=${t("checkout.title")} text=${t("cart.sign_in")} />`;
  if (!cart) return html`<${Title}>${t("checkout.title")}<//><p>${t("catalogue.loading")}</p>`;
  const isOrdering = state.pending.some(({ kind }) => kind === "order");
  if (!cart.items.length && !isOrdering) return html`<${Title}>${t("checkout.title")}<//><${EmptyCart} />`;
  const change = (name, value) => {
    const next = { ...address, [name]: value };
    localStorage.setItem(ADDRESS, JSON.stringify(next));
    setAddress(next);
  };
  const place = async () => {
    const filled = Object.entries(address).filter(([, value]) => value.trim() !== "");
    // Empty fields are sent too, so that the shop names each required one.
    const required = Object.fromEntries(FIELDS.filter(([, { required }]) => required).map(([name]) => [name, ""]));
    await placeOrder({ ...required, ...Object.fromEntries(filled) }, cart.total);
  };
  // Prices and stock may be why the shop refused.
  const refresh = () => loadCart().catch((error) => isRetryable(error) || report(error));
  const total = money(cart.total, cart.currency);
  return html`
    <${Title}>${t("checkout.title")}<//>
    <div class="split">
      <section>
        <h2>${t("checkout.address")}</h2>
        <${Form} onSubmit=${place} onError=${refresh} button=${t("checkout.place", { total })}>
          ${(wrong) => html`<${AddressFields} address=${address} change=${change} wrong=${wrong} />`}
        <//>
      </section>
      <${Summary} cart=${cart} />
    </div>
  `;
}

function AddressFields({ address, change, wrong }) {
  const countries = COUNTRIES.match(/../g).map((code) => [code, countryName(code)]).sort((a, b) => compare(a[1], b[1]));
  const select = (control) => html`
    <select ...${control} autocomplete="country" required value=${address.country} onChange=${({ target }) => change("country", target.value)}>
      ${countries.map(([code, name]) => html`<option value=${code} selected=${code === address.country}>${name}</option>`)}
    </select>
  `;
  return html`
    <div class="address">
      ${FIELDS.map(
        ([name, attributes]) => html`<${Field}
          name=${name} label=${t(`address.${name}`)} error=${wrong[name]} value=${address[name] ?? ""}
          onInput=${({ target }) => change(name, target.value)} ...${attributes}
        />`,
      )}
      <${Field} name="country" label=${t("address.country")} error=${wrong.country}>${select}<//>
    </div>
  `;
}

function Summary({ cart }) {
  const { items, total, currency } = cart;
  return html`
    <section class="panel">
      <h2>${t("checkout.summary")}</h2>
      <ul class="summary">
        ${items.map(
          ({ name, quantity, line_total, available }) => html`<li>
            <span>${quantity} × ${name} ${!available && html`<small class="stock none">${t("cart.unavailable")}</small>`}</span>
            <span>${money(line_total, currency)}</span>
          </li>`,
        )}
      </ul>
      <p class="total"><span>${t("cart.total")}</span> <strong>${money(total, currency)}</strong></p>
      <p class="hint">${t("checkout.hint")}</p>
    </section>
  `;
}

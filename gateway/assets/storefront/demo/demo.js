// The demonstration: a flash sale over several gateways, and an order on three devices, while gateways are killed. The
// supervisor of `scripts/up` runs both with real requests, and this page shows what it reports.

import { LineChart } from "../admin/charts.js";
import { ActionButton, Icon, Languages, Title } from "../components.js";
import { html, render, useEffect, useState } from "../html.js";
import { addMessages, hasMessage, number, t } from "../i18n.js";
import { setRoutes } from "../router.js";
import { announce } from "../shop.js";
import { useStore } from "../store.js";
import { Control } from "./control.js";
import { messages } from "./messages.js";

/** The gateways of the demonstration. */
const MIN_GATEWAYS = 3;
const COMMAND = "scripts/up --gateways 3";

addMessages(messages);
setRoutes([[/^\/demo$/, "demo"]]);

function App() {
  useStore();
  const [state, setState] = useState();
  const [control, setControl] = useState();
  const [connection, setConnection] = useState("connecting");
  useEffect(() => {
    const onState = (state) => {
      setState(state);
      setConnection("open");
    };
    setControl(new Control({ onState, onLost: () => setConnection("lost"), onRefused: () => setConnection("refused") }));
  }, []);
  return html`
    <a class="skip" href="#content" onClick=${(event) => (event.preventDefault(), document.getElementById("content").focus())}>${t("skip")}</a>
    <header class="top">
      <div class="top-row admin-row">
        <a class="logo" href="/"><${Icon} name="logo" />${t("shop.name")}</a>
        <${Languages} />
      </div>
    </header>
    <main id="content" class="admin" tabindex="-1">
      <${Title}>${t("demo.title")}<//>
      <p class="lead">${t("demo.lead")}</p>
      ${connection !== "open" && html`<p class="notice ${connection === "refused" ? "error" : "info"}" role="status">${t(`demo.${connection}`)}</p>`}
      ${connection !== "refused" && state && html`<${Content} state=${state} control=${control} />`}
    </main>
    <div id="announcements" class="hidden" role="status" aria-live="polite"></div>
  `;
}

function Content({ state, control }) {
  const start = (path) => () => control.start(path);
  if (state.gateways.length < MIN_GATEWAYS) {
    return html`<div class="panel"><p>${t("demo.few_gateways", { n: state.gateways.length })}</p><p><code class="command">${COMMAND}</code></p></div>`;
  }
  return html`
    <${Gateways} gateways=${state.gateways} kill=${(index) => control.start(`/gateways/${index}/kill`)} />
    <${Sale} sale=${state.sale} buyers=${state.buyers} start=${start("/sale")} />
    <${Delivery} delivery=${state.delivery} start=${start("/delivery")} />
  `;
}

const report = (error) => announce(error.message);

function Gateways({ gateways, kill }) {
  return html`
    <section aria-labelledby="gateways">
      <h2 id="gateways">${t("demo.gateways")}</h2>
      <p class="hint">${t("demo.gateways_hint")}</p>
      <ul class="gateways">
        ${gateways.map(({ name, url, pid, is_up, starts }, index) => html`
          <li class="panel" data-gateway=${name} data-up=${is_up} data-starts=${starts}>
            <p><strong>${name}</strong> <span class="status" data-status=${is_up ? "paid" : "cancelled"}>${t(is_up ? "demo.up" : "demo.down")}</span></p>
            <p><small>${url.replace("http://", "")}${pid ? ` · ${t("demo.process", { pid })}` : ""}${starts > 1 ? ` · ${t("demo.starts", { n: starts })}` : ""}</small></p>
            <${ActionButton} class="danger" action=${() => kill(index)} onError=${report} aria-label="${t("demo.kill")}, ${name}">${t("demo.kill")}<//>
          </li>
        `)}
      </ul>
    </section>
  `;
}

const isRunning = (one) => one && !["done", "failed"].includes(one.phase);

function Sale({ sale, buyers, start }) {
  // After a failed sign-in, the sale repeats it.
  const isReady = buyers.ready === buyers.total || buyers.error !== null;
  return html`
    <section aria-labelledby="sale">
      <h2 id="sale">${t("demo.sale", { buyers: buyers.total })}</h2>
      <p class="hint">${t("demo.sale_hint", { buyers: buyers.total })}</p>
      ${buyers.error && html`<p class="form-error" role="alert">${buyers.error}</p>`}
      ${!isReady && html`<p role="status"><label>${t("demo.signing_in", buyers)} <progress value=${buyers.ready} max=${buyers.total}></progress></label></p>`}
      <p><${ActionButton} class="primary" disabled=${!isReady || isRunning(sale)} action=${start} onError=${report}>${t(sale ? "demo.sell_again" : "demo.sell")}<//></p>
      ${sale && html`<${SaleResult} sale=${sale} />`}
    </section>
  `;
}

function SaleResult({ sale }) {
  const { phase, supplied, buyers, ordered, refused, paid, left, retries, samples, ledger, error } = sale;
  const line = (index, tone, name) => ({ tone, label: t(`demo.${name}`), points: samples.map((sample) => [sample[0], sample[index]]) });
  const range = [samples[0]?.[0] ?? 0, samples.at(-1)?.[0] ?? 0];
  const rows = [
    ["ordered", ordered, "good"],
    ["refused_count", refused, "danger"],
    ["left", left, "muted"],
    ["paid", paid, "accent"],
  ];
  return html`
    <div class="sale" data-phase=${phase}>
      <dl class="counters">
        ${rows.map(([name, value, tone]) => html`<div data-tone=${tone}><dt>${t(`demo.${name}`)}</dt><dd data-counter=${name}>${number(value)}</dd></div>`)}
      </dl>
      <${LineChart}
        title=${t("demo.plot")} isStepped range=${range} format=${number} footer=${t("demo.plot_end", { seconds: number(Math.round(range[1] / 100) / 10) })}
        series=${[line(4, "muted", "left"), line(2, "danger", "refused_count"), line(3, "accent", "paid"), line(1, "good", "ordered")]}
      />
      ${retries > 0 && html`<p class="hint">${t("demo.retries", { n: number(retries) })}</p>`}
      ${phase === "settling" && html`<p class="hint" role="status">${t("demo.settling")}</p>`}
      ${error && html`<p class="form-error" role="alert">${error}</p>`}
      ${phase === "done" && ledger && html`<${Ledger} ledger=${ledger} isExact=${ordered === supplied && refused === buyers - supplied} />`}
    </div>
  `;
}

/** The shop's own account: supplied = available + held + sold. */
function Ledger({ ledger, isExact }) {
  const { supplied, available, held, sold, orders } = ledger;
  const isBalanced = supplied === available + held + sold && isExact;
  return html`
    <div class="verdict panel" role="status" data-state=${isBalanced ? "fine" : "trouble"}>
      <p><strong>${t(isBalanced ? "demo.exact" : "demo.inexact")}</strong></p>
      <p class="equation" aria-label=${t("demo.equation_label", { supplied, available, held, sold })}>
        <span><b>${number(supplied)}</b> ${t("demo.supplied")}</span> = <span><b>${number(available)}</b> ${t("demo.available")}</span> +
        <span><b>${number(held)}</b> ${t("demo.held")}</span> + <span><b data-sold=${sold}>${number(sold)}</b> ${t("demo.sold")}</span>
      </p>
      <p><small>${t("demo.orders", { n: number(orders) })}</small></p>
    </div>
  `;
}

function Delivery({ delivery, start }) {
  return html`
    <section aria-labelledby="delivery">
      <h2 id="delivery">${t("demo.delivery")}</h2>
      <p class="hint">${t("demo.delivery_hint")}</p>
      <p><${ActionButton} class="primary" disabled=${isRunning(delivery)} action=${start} onError=${report}>${t("demo.deliver")}<//></p>
      ${delivery?.error && html`<p class="form-error" role="alert">${delivery.error}</p>`}
      ${delivery && html`
        <ul class="devices" data-phase=${delivery.phase}>
          ${delivery.devices.map((device, index) => html`<${Device} key=${index} number=${index + 1} device=${device} steps=${delivery.steps} />`)}
        </ul>
        ${delivery.phase === "done" && html`<p class="verdict panel" role="status" data-state="fine"><strong>${t("demo.delivered")}</strong></p>`}
      `}
    </section>
  `;
}

function Device({ number: index, device, steps }) {
  const { gateway, is_connected, reconnects, frames } = device;
  const committed = new Map(steps.map(({ status, at }) => [status, at]));
  return html`
    <li class="panel device" data-connected=${is_connected} data-frames=${frames.length}>
      <p><strong>${t("demo.device", { n: index })}</strong> <small>${gateway}</small></p>
      <p><span class="status" data-status=${is_connected ? "paid" : "cancelled"}>${t(is_connected ? "demo.connected" : "demo.disconnected")}</span>
        ${reconnects > 0 && html` <small>${t("demo.reconnects", { n: reconnects })}</small>`}</p>
      <ol class="timeline small">
        ${frames.map(({ status, seq, at }) => html`
          <li key=${seq} data-done="true" data-status=${status}>
            <strong>${hasMessage(`status.${status}`) ? t(`status.${status}`) : status}</strong>
            <small>${t("demo.frame", { seq })}${committed.has(status) ? ` · ${t("demo.latency", { ms: number(Math.max(1, Math.round(at - committed.get(status)))) })}` : ""}</small>
          </li>
        `)}
      </ol>
    </li>
  `;
}

render(html`<${App} />`, document.getElementById("app"));

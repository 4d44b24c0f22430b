// The state of the shop: a sentence for each thing that is wrong, and plots of the last minutes.

import { Title } from "../components.js";
import { html, useEffect, useRef, useState } from "../html.js";
import { number, t, time } from "../i18n.js";
import { client } from "../shop.js";
import { BarChart, LineChart } from "./charts.js";
import { usePolling } from "./polling.js";

const POLL_INTERVAL = 2_000;
/** The samples of the plots: ten minutes. */
const MAX_SAMPLES = 300;
/** The time that a plot spans at least. Milliseconds. */
const MIN_PLOT_TIME = 60_000;
/** The services, in the order of the page. */
const SERVICES = ["auth", "product", "order"];
/** The thresholds of the alerts in observability/rules.yml. Seconds. */
const MAX_OUTBOX_AGE = 30;
const MAX_AUDIT_AGE = 900;
const MAX_REFUND_AGE = 900;
/** A change is found within a second. Seconds. */
const MAX_INDEX_AGE = 10;

/** Returns the sentences of what is wrong. */
function findProblems(status) {
  const { gateway, auth, product, order } = status;
  const problems = [];
  const check = (isWrong, name, values) => isWrong && problems.push(t(`health.problem.${name}`, values));
  for (const service of SERVICES) check(status[service] === null, "service", { service: t(`health.service.${service}`) });
  for (const [name, part] of Object.entries({ gateway, auth, product, order })) {
    const service = t(`health.service.${name}`);
    for (const dependency of part?.unavailable_dependencies ?? []) check(true, "dependency", { service, dependency });
  }
  for (const [name, part] of Object.entries({ auth, order })) {
    const age = part?.outbox_oldest_seconds;
    check(age > MAX_OUTBOX_AGE, "outbox", { service: t(`health.service.${name}`), seconds: number(Math.round(age)) });
  }
  check(order?.dead_letters > 0, "dead_letters", { n: number(order?.dead_letters) });
  check(product?.stock_violations > 0, "stock", { n: number(product?.stock_violations) });
  check(product?.stock_audit_age_seconds > MAX_AUDIT_AGE, "audit", {});
  check(product?.search_index_age_seconds > MAX_INDEX_AGE, "search", { seconds: number(Math.round(product?.search_index_age_seconds)) });
  check(order?.order_mismatches > 0, "mismatches", { n: number(order?.order_mismatches) });
  check(order?.refunds_oldest_seconds > MAX_REFUND_AGE, "refunds_late", {});
  check(order?.refunds_failed > 0, "refunds", { n: number(order?.refunds_failed) });
  return problems;
}

export function Status() {
  const [status] = usePolling(() => client.get("/api/v1/admin/status"), "status", POLL_INTERVAL);
  const [samples, setSamples] = useState([]);
  const last = useRef();
  useEffect(() => {
    if (status && status.at !== last.current) setSamples((before) => [...before, { ...status, time: Date.parse(status.at) }].slice(-MAX_SAMPLES));
    last.current = status?.at;
  }, [status]);
  return html`
    <${Title}>${t("admin.status")}<//>
    ${status && html`<${Verdict} problems=${findProblems(status)} at=${status.at} />`}
    ${status && html`<${Figures} ...${status} />`}
    ${samples.length > 0 && html`<${Plots} samples=${samples} />`}
  `;
}

function Verdict({ problems, at }) {
  return html`
    <div class="verdict panel" role="status" data-state=${problems.length ? "trouble" : "fine"}>
      <p><strong>${problems.length ? t("health.trouble", { n: problems.length }) : t("health.fine")}</strong></p>
      ${problems.length > 0 && html`<ul>${problems.map((problem) => html`<li>${problem}</li>`)}</ul>`}
    </div>
    <p class="hint live-dot">${t("health.at", { at: time(at) })}</p>
  `;
}

const milliseconds = (seconds) => (seconds === null ? "–" : t("health.ms", { n: number(Math.ceil(seconds * 1000)) }));
const age = (seconds) => t("health.seconds", { n: number(Math.round(seconds)) });
/** A figure of a service, or a dash where it does not answer. */
const figure = (part, value) => (part === null ? "–" : value(part));

function Figures({ gateway, auth, product, order }) {
  const groups = [
    ["health.group.orders", [
      ["health.orders_last_hour", figure(order, ({ orders_per_minute }) => number(orders_per_minute.reduce((sum, count) => sum + count, 0)))],
      ["health.payments_open", figure(order, ({ payments_open }) => number(payments_open))],
      ["health.refunds_pending", figure(order, ({ refunds_pending }) => number(refunds_pending))],
      ["health.stock_tasks", figure(order, ({ stock_tasks }) => number(stock_tasks))],
      ["health.overdue", figure(order, ({ orders_overdue }) => number(orders_overdue))],
    ]],
    ["health.group.stock", [
      ["health.stock_violations", figure(product, ({ stock_violations }) => number(stock_violations))],
      ["health.order_mismatches", figure(order, ({ order_mismatches }) => number(order_mismatches))],
      ["health.stock_audit", figure(product, ({ stock_audit_age_seconds }) => age(stock_audit_age_seconds))],
      ["health.products", figure(product, ({ search_index_products }) => number(search_index_products))],
      ["health.index_age", figure(product, ({ search_index_age_seconds }) => age(search_index_age_seconds))],
    ]],
    ["health.group.events", [
      ["health.outbox", figure(order, ({ outbox_pending }) => number(outbox_pending))],
      ["health.outbox_age", figure(order, ({ outbox_oldest_seconds }) => age(outbox_oldest_seconds))],
      ["health.dead_letters", figure(order, ({ dead_letters }) => number(dead_letters))],
      ["health.registrations", figure(auth, ({ outbox_pending }) => number(outbox_pending))],
    ]],
    ["health.group.gateway", [
      ["health.sockets", number(gateway.sockets)],
      ["health.admin_streams", number(gateway.admin_streams)],
      ["health.deliveries", number(gateway.event_delivery.count)],
      ["health.p50", milliseconds(gateway.event_delivery.p50_seconds)],
      ["health.p99", milliseconds(gateway.event_delivery.p99_seconds)],
    ]],
  ];
  return html`
    <div class="figures">
      ${groups.map(([name, rows]) => html`
        <section class="panel">
          <h2>${t(name)}</h2>
          <dl class="details">${rows.map(([label, value]) => html`<div><dt>${t(label)}</dt><dd>${value}</dd></div>`)}</dl>
        </section>
      `)}
    </div>
  `;
}

function Plots({ samples }) {
  const now = samples.at(-1).time;
  const range = [Math.min(samples[0].time, now - MIN_PLOT_TIME), now];
  const footer = `${time(range[0])} – ${time(range[1])}`;
  const line = (read, tone = "good", label = undefined) => ({ tone, label, points: samples.map((sample) => [sample.time, read(sample)]) });
  const last = samples.findLast(({ order }) => order)?.order;
  return html`
    <div class="plots">
      ${last && html`<${BarChart} title=${t("health.plot.orders")} values=${last.orders_per_minute} format=${number} footer=${t("health.plot.hour")} />`}
      <${LineChart}
        title=${t("health.plot.delivery")} range=${range} footer=${footer} format=${(scale) => t("health.ms", { n: number(Math.ceil(scale)) })}
        series=${[
          line(({ gateway }) => inMilliseconds(gateway.event_delivery.p99_seconds), "warn", t("health.percentile")),
          line(({ gateway }) => inMilliseconds(gateway.event_delivery.p50_seconds), "good", t("health.median")),
        ]}
      />
      <${LineChart} title=${t("health.plot.outbox")} range=${range} footer=${footer} format=${number} series=${[line(({ order }) => order?.outbox_pending ?? null)]} />
      <${LineChart} title=${t("health.plot.sockets")} range=${range} footer=${footer} format=${number} series=${[line(({ gateway }) => gateway.sockets + gateway.admin_streams)]} />
    </div>
  `;
}

const inMilliseconds = (seconds) => (seconds === null ? null : seconds * 1000);

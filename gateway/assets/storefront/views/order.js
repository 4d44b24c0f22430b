// An order: its life as a timeline that moves by itself, its payment, and the steps that its customer can take.

import { ActionButton, Form, SignInFirst, Thumbnail, Title } from "../components.js";
import { html, useEffect, useState } from "../html.js";
import { countryName, dateTime, money, t, time } from "../i18n.js";
import { client, loadOrder, report, shortId, takeStep } from "../shop.js";
import { state } from "../store.js";
import { findPending, isRetryable } from "../writes.js";
import { Status } from "./orders.js";

const CARDS = ["tok_ok", "tok_slow", "tok_declined", "tok_insufficient_funds"];
/** The steps of an order that nothing comes between. */
const STEPS = ["pending", "paid", "shipped", "completed"];
const RETRY_DELAY = 2_000;

/** Reads the order and its history again with each of its versions, which the live events tell. */
function useOrder(id, userId) {
  const [history, setHistory] = useState([]);
  const [error, setError] = useState();
  const version = state.orders.get(id)?.version;
  const isLive = state.live === "open";
  useEffect(() => {
    let isOver = false;
    let timer;
    const load = async () => {
      try {
        const params = { path: { id } };
        const [, { items }] = await Promise.all([loadOrder(id), client.get("/api/v1/orders/{id}/events", { params })]);
        if (!isOver) setHistory(items);
        if (!isOver) setError(undefined);
      } catch (error) {
        if (isOver) return;
        if (isRetryable(error)) timer = setTimeout(load, RETRY_DELAY);
        else setError(error);
      }
    };
    if (userId) load();
    return () => {
      isOver = true;
      clearTimeout(timer);
    };
  }, [id, version, userId, isLive]);
  return { order: state.orders.get(id), history, error };
}

export function Order({ id }) {
  const { user } = state;
  const { order, history, error } = useOrder(id, user?.id);
  if (!user) return html`<${SignInFirst} title=${t("order.title", { order: shortId(id) })} text=${t("orders.sign_in")} />`;
  if (error && !order) return html`<${Title}>${t("order.missing")}<//><p><a href="/shop/orders">${t("order.all")}</a></p>`;
  if (!order?.items) return html`<${Title}>${t("catalogue.loading")}<//>`;
  const { status, created_at } = order;
  return html`
    <p class="eyebrow"><a href="/shop/orders">${t("order.all")}</a></p>
    <div class="order-head">
      <${Title}>${t("order.title", { order: shortId(id) })}<//>
      <${Status} status=${status} />
    </div>
    <p class="hint">${t("order.placed_at", { at: dateTime(created_at) })}</p>
    <div class="split">
      <div>
        ${status === "pending" && html`<${Payment} order=${order} />`}
        <${Timeline} order=${order} history=${history} />
        <${Steps} order=${order} />
      </div>
      <${Contents} order=${order} />
    </div>
  `;
}

function Timeline({ order, history }) {
  const { status, shipment, payment, cancel_reason } = order;
  const done = history.map((event) => ({ ...event, isDone: true }));
  // A step that an event told of already, before the history is read again.
  if (done.length && done.at(-1).status !== status) done.push({ status, isDone: true });
  const reached = STEPS.indexOf(done.at(-1)?.status);
  const ahead = status === "cancelled" || reached < 0 ? [] : STEPS.slice(reached + 1).map((status) => ({ status }));
  const refund = `payment.${payment?.status}`;
  return html`
    <section aria-labelledby="timeline">
      <h2 id="timeline">${t("order.timeline")}</h2>
      <ol class="timeline">
        ${[...done, ...ahead].map(
          ({ status, at, actor, isDone }) => html`<li key=${status} data-status=${status} data-done=${Boolean(isDone)}>
            <strong>${t(`step.${status}`)}</strong>
            ${at && html`<small><time datetime=${at} title=${dateTime(at)}>${time(at)}</time> · ${t("order.step_by", { actor: t(`actor.${actor}`) })}</small>`}
            ${status === "shipped" && shipment && html`<small>${t("order.tracking", { carrier: shipment.carrier, number: shipment.tracking_number })}</small>`}
            ${status === "cancelled" && cancel_reason && html`<small>${cancel_reason}</small>`}
          </li>`,
        )}
      </ol>
      ${["refund_pending", "refunded", "refund_failed"].includes(payment?.status) && html`<p>${t(refund)}</p>`}
      <p class="hint live-dot">${t("order.live")}</p>
    </section>
  `;
}

function Payment({ order }) {
  const { id, total, currency, expires_at } = order;
  // A payment that a reload interrupted has its card.
  const payment = findPending(`pay-${id}`);
  const [card, setCard] = useState(payment?.body.payment_token ?? CARDS[0]);
  const isPaying = payment !== undefined;
  const busy = t(payment?.isSent && !state.isOffline ? "pay.busy" : "busy");
  return html`
    <section class="panel" aria-labelledby="payment">
      <h2 id="payment">${t("pay.title")}</h2>
      <p class="hint">${t("pay.hint")}</p>
      <${Form}
        onSubmit=${() => takeStep("pay", id, { payment_token: card })}
        onError=${(error) => error.status === 401 && report(error)}
        button=${isPaying ? busy : t("pay.button", { total: money(total, currency) })} busy=${busy}
      >
        <fieldset class="cards-of-sandbox">
          <legend class="hidden">${t("pay.title")}</legend>
          ${CARDS.map(
            (token) => html`<label class="choice">
              <input type="radio" name="card" value=${token} checked=${card === token} onChange=${() => setCard(token)} />
              <span>${t(`card.${token}`)}</span>
            </label>`,
          )}
        </fieldset>
      <//>
      ${expires_at && html`<p class="hint">${t("pay.until", { at: time(expires_at) })}</p>`}
    </section>
  `;
}

function Steps({ order }) {
  const { id, status } = order;
  const button = (step, isPrimary) => html`
    <${ActionButton} class=${isPrimary ? "primary" : ""} action=${() => takeStep(step, id, step === "cancel" ? {} : undefined)} onError=${report}>
      ${t(`order.${step}`)}
    <//>
  `;
  if (status === "pending") return html`<p>${button("cancel")}</p>`;
  if (status === "shipped") return html`<p>${button("complete", true)}</p>`;
  return null;
}

function Contents({ order }) {
  const { items, total, currency, shipping_address: address } = order;
  const lines = [
    address.recipient,
    address.line1,
    address.line2,
    `${address.postal_code} ${address.city}`,
    address.region,
    countryName(address.country),
    address.phone,
  ].filter(Boolean);
  return html`
    <section class="panel">
      <h2>${t("order.items")}</h2>
      <ul class="lines small">
        ${items.map(
          ({ product_id, name, quantity, line_total }) => html`<li class="line">
            <${Thumbnail} id=${product_id} />
            <div class="line-text"><a href="/shop/products/${product_id}">${name}</a><small>× ${quantity}</small></div>
            <span>${money(line_total, currency)}</span>
          </li>`,
        )}
      </ul>
      <p class="total"><span>${t("cart.total")}</span> <strong>${money(total, currency)}</strong></p>
      <h2>${t("order.address")}</h2>
      <address>${lines.map((line) => html`<span>${line}</span>`)}</address>
    </section>
  `;
}

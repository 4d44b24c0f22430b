// Errors as sentences for a customer, made of the members of a problem (RFC 9457) and never of its text.

import { ProblemError } from "@shoppee/client";
import { hasMessage, money, t } from "./i18n.js";
import { state } from "./store.js";

/** Returns the sentences of an error, a line each. */
export function explain(error) {
  if (!(error instanceof ProblemError)) {
    if (!(error instanceof TypeError) && !["TimeoutError", "AbortError"].includes(error.name)) console.error(error);
    return t(navigator.onLine ? "error.unreachable" : "error.offline");
  }
  const { code, problem } = error;
  switch (code) {
    case "out_of_stock":
    case "product_unavailable":
      return (problem.lines ?? []).map((line) => explainLine(code, line)).join("\n") || t(`error.${code}`);
    case "price_changed":
      return t("error.price_changed", { total: money(problem.current_total, currency()) });
    case "invalid_transition":
      return t("error.invalid_transition", { status: t(`status.${problem.current_status}`) });
    case "payment_declined":
      return t(hasMessage(`error.declined.${problem.decline_code}`) ? `error.declined.${problem.decline_code}` : "error.payment_declined");
    case "validation_failed":
    case "invalid_request":
      return Object.values(fieldErrors(error)).join("\n") || t("error.invalid_request");
    case "rate_limited":
    case "too_many_attempts":
      return t(`error.${code}`, { seconds: error.retryAfter ?? 60 });
    default:
      return hasMessage(`error.${code}`) ? t(`error.${code}`) : t("error.other", { id: error.requestId });
  }
}

function explainLine(code, { product_id, sku, requested, available, held_by_your_order }) {
  const product = nameOf(product_id) ?? sku ?? "";
  if (code === "product_unavailable") return t("error.line_unavailable", { product });
  if (held_by_your_order) return t("error.line_held", { product, available });
  return t(available > 0 ? "error.line_short" : "error.line_sold_out", { product, requested, available });
}

function nameOf(id) {
  return state.products.get(id)?.name ?? state.cart?.items.find(({ product_id }) => product_id === id)?.name;
}

const currency = () => state.cart?.currency ?? "EUR";

/** Returns the sentence of each wrong field, by the last part of its name. */
export function fieldErrors(error) {
  if (!(error instanceof ProblemError)) return {};
  const names = error.errors.map(({ field }) => field.split(".").at(-1));
  return Object.fromEntries(
    names.map((name) => [name, hasMessage(`invalid.${name}`) ? t(`invalid.${name}`) : t("invalid.other", { field: name })]),
  );
}

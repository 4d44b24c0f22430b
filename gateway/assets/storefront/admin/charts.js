// Small charts as SVG. Each has a text for screen readers; the numbers stand beside it.

import { html, useId } from "../html.js";

const WIDTH = 600;
const HEIGHT = 160;
/** The least maximum of an axis, so that a chart of zeros is flat at its bottom. */
const MIN_SCALE = 1;

const scaleOf = (values) => Math.max(MIN_SCALE, ...values.filter((value) => value !== null));

/** A chart in a frame, with the maximum of its axis and a caption. */
function Frame({ title, maximum, legend, children, footer }) {
  const id = useId();
  return html`
    <figure class="chart">
      <figcaption id=${id}>${title}</figcaption>
      <span class="chart-max" aria-hidden="true">${maximum}</span>
      <svg viewBox="0 0 ${WIDTH} ${HEIGHT}" preserveAspectRatio="none" role="img" aria-labelledby=${id}>
        <path class="chart-grid" d="M0 0.5H${WIDTH}M0 ${HEIGHT / 2}H${WIDTH}M0 ${HEIGHT - 0.5}H${WIDTH}" />
        ${children}
      </svg>
      ${legend}
      ${footer && html`<p class="chart-footer">${footer}</p>`}
    </figure>
  `;
}

/** A bar for each value. */
export function BarChart({ title, values, format, footer }) {
  const scale = scaleOf(values);
  const width = WIDTH / values.length;
  const bars = values.map((value, at) => {
    const height = (value / scale) * HEIGHT;
    return html`<rect x=${at * width + width * 0.1} y=${HEIGHT - height} width=${width * 0.8} height=${height} />`;
  });
  return html`<${Frame} title=${title} maximum=${format(scale)} footer=${footer}>${bars}<//>`;
}

/** Names the lines of a chart by their colours. */
function Legend({ series }) {
  return html`<ul class="chart-legend">${series.map(({ tone, label }) => html`<li data-tone=${tone}>${label}</li>`)}</ul>`;
}

/**
 * Lines over time. `series` is a list of `{ points, tone, label }`; a point is `[x, value]`, and lacks its value where it is
 * null. A single line needs no label.
 */
export function LineChart({ title, series, range, format, isStepped = false, footer }) {
  const scale = scaleOf(series.flatMap(({ points }) => points.map(([, value]) => value)));
  const [from, to] = range;
  const x = (at) => (to > from ? ((at - from) / (to - from)) * WIDTH : 0).toFixed(1);
  const y = (value) => (HEIGHT - (value / scale) * HEIGHT).toFixed(1);
  const path = (points) => {
    let text = "";
    let isDrawing = false;
    for (const [at, value] of points) {
      if (value === null) isDrawing = false;
      else {
        // A step keeps its value until the next one.
        if (isDrawing && isStepped) text += `H${x(at)}`;
        // A line of no length is a point.
        text += isDrawing ? `L${x(at)} ${y(value)}` : `M${x(at)} ${y(value)}h0`;
        isDrawing = true;
      }
    }
    return isDrawing && isStepped ? `${text}H${WIDTH}` : text;
  };
  return html`
    <${Frame} title=${title} maximum=${format(scale)} legend=${series.length > 1 && html`<${Legend} series=${series} />`} footer=${footer}>
      ${series.map(({ points, tone }) => html`<path class="chart-line" data-tone=${tone} d=${path(points)} />`)}
    <//>
  `;
}

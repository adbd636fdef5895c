// The last hour as charts. uPlot is loaded when the first one is shown.
import { get } from "./api.js";
import { el, put } from "./dom.js";
import { clock, duration, number, rate } from "./words.js";

const AGAIN_MS = 10000; // the bridge looks as often
const MINUTES = 60;
const HEIGHT = 170;

const CHARTS = [
  {
    title: "Waits", unit: "items", tell: (value) => number(Math.round(value)),
    lines: [{ key: "backlog", label: "items that wait", color: "--line-1" }],
  },
  {
    title: "Delivered and failed", unit: "per second", tell: rate,
    lines: [
      { key: "acked_per_second", label: "items acknowledged", color: "--line-1" },
      { key: "failed_per_second", label: "attempts failed", color: "--line-2", dash: [6, 4] },
    ],
  },
  {
    title: "Oldest that waits", unit: "seconds", tell: duration,
    lines: [{ key: "oldest_seconds", label: "age of the oldest", color: "--line-1" }],
  },
];

let loading = null;

function uplot() {
  loading ??= (async () => {
    const vendored = new URL("vendor/uplot/", import.meta.url);
    const style = el("link", { rel: "stylesheet", href: new URL("uPlot.min.css", vendored) });
    document.head.append(style);
    return (await import(new URL("uPlot.esm.js", vendored))).default;
  })().catch((error) => {
    loading = null;
    throw error;
  });
  return loading;
}

/** Charts inside `parent` until `leave`; of one appservice, or of all. */
export function historyCharts(parent, id) {
  const where = `history?minutes=${MINUTES}${id === null ? "" : `&appservice=${encodeURIComponent(id)}`}`;
  const note = el("p", { class: "empty" }, "Looking at the last hour…");
  const charts = CHARTS.map(chart);
  put(parent, note, el("div", { class: "charts" }, ...charts.map((each) => each.element)));
  let gone = false;
  let timer = 0;
  let points = [];

  async function show() {
    const uPlot = await uplot();
    if (gone) return;
    note.hidden = points.length > 1;
    note.textContent = "Nothing was noted yet. The worker notes one point each ten seconds and keeps an"
      + " hour in memory: look again in half a minute.";
    for (const each of charts) each.show(uPlot, points);
  }

  async function look() {
    try {
      ({ points } = await get(where));
      await show();
    } catch (error) {
      note.hidden = false;
      note.textContent = `The history cannot be had: ${error.message}`;
    }
    if (!gone) timer = setTimeout(look, AGAIN_MS);
  }

  const redraw = () => {
    charts.forEach((each) => each.forget());
    if (points.length) show();
  };
  addEventListener("themechange", redraw);
  look();
  return {
    leave() {
      gone = true;
      clearTimeout(timer);
      removeEventListener("themechange", redraw);
      charts.forEach((each) => each.leave());
    },
  };
}

function chart({ title, unit, tell, lines }) {
  const inside = el("div", { class: "plot", "aria-hidden": "true" });
  const summary = el("figcaption");
  const element = el("figure", { class: "chart" }, el("h3", {}, `${title} `, el("small", {}, unit)),
    inside, summary);
  let plot = null;
  const resized = new ResizeObserver(() => {
    plot?.setSize({ width: inside.clientWidth, height: HEIGHT });
  });
  resized.observe(inside);

  return {
    element,
    forget() {
      plot?.destroy();
      plot = null;
    },
    leave() {
      resized.disconnect();
      this.forget();
    },
    show(uPlot, points) {
      element.hidden = points.length < 2;
      if (element.hidden) return;
      const data = [points.map(({ ts }) => ts / 1000),
        ...lines.map(({ key }) => points.map((point) => point[key]))];
      if (plot) plot.setData(data);
      else plot = new uPlot(options(lines, inside.clientWidth, tell), data, inside);
      summary.textContent = lines.map((line) => told(line, points, tell)).join("; ");
    },
  };
}

function told({ key, label }, points, tell) {
  const known = points.filter((point) => point[key] !== null && point[key] !== undefined);
  if (known.length === 0) return `${label}: not known`;
  const most = known.reduce((one, other) => (other[key] > one[key] ? other : one));
  return `${label}: ${tell(known.at(-1)[key])} now, ${tell(most[key])} at most (${clock(most.ts)})`;
}

/** What a custom property comes to in the theme of now. */
function color(name) {
  const probe = el("i", { hidden: true });
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

function options(lines, width, tell) {
  const pad = (value) => String(value).padStart(2, "0");
  const hour = (seconds) => {
    const at = new Date(seconds * 1000);
    return `${pad(at.getHours())}:${pad(at.getMinutes())}`;
  };
  const axis = { stroke: color("--text"), grid: { stroke: color("--rule"), width: 1 }, ticks: { show: false } };
  return {
    width,
    height: HEIGHT,
    cursor: { y: false },
    legend: { show: lines.length > 1, live: false },
    scales: { y: { range: (_, __, most) => [0, Math.max(most * 1.1, 1)] } },
    axes: [
      { ...axis, incrs: [60, 300, 600, 1200, 3600], values: (_, ticks) => ticks.map(hour) },
      { ...axis, size: 60, values: (_, ticks) => ticks.map((tick) => (tick === 0 ? "0" : tell(tick))) },
    ],
    series: [{}, ...lines.map(({ label, color: name, dash }) => ({
      label, dash, stroke: color(name), width: 2, points: { show: false },
    }))],
  };
}

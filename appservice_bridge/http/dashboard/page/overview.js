// All lanes at one look: is all well, and if not, where first.
import { historyCharts } from "./charts.js";
import { path } from "./api.js";
import { el, keyed, put, setText } from "./dom.js";
import { badge } from "./shapes.js";
import {
  STATE_WORDS, bytes, counted, duration, lastAnswer, lasting, number, rate, stateOf, worseFirst,
} from "./words.js";

const AT_FIRST = 40; // as many as a large screen shows; the others follow when it has painted

const COLUMNS = [
  ["Appservice", "id"], ["State", "state"], ["Waits", "n"], ["Oldest", "n"], ["Oldest room key", "n"],
  ["Rate", "n"], ["Dead letters", "n"], ["Last answer", "wide"], ["Worker", "wide"],
];

/** The page at `#/`. */
export function overviewPage() {
  const verdict = verdictLine();
  const problems = el("ul", { class: "problems" });
  const figures = el("p", { class: "figures" });
  const search = el("input", {
    id: "search", type: "search", autocomplete: "off", spellcheck: "false",
    placeholder: "id, host, worker, answer", oninput: () => show(),
  });
  const only = el("select", { id: "only", onchange: () => show() },
    el("option", { value: "" }, "all"), el("option", { value: "unwell" }, "not well"),
    el("option", { value: "letters" }, "with dead letters"),
    ...STATE_WORDS.map(([state, word]) => el("option", { value: `=${state}` }, word)));
  const found = el("p", { class: "found", role: "status" });
  const rows = el("div", { role: "rowgroup", class: "rows" });
  const lanes = el("div", { role: "table", "aria-label": "Lanes, the worst first", class: "lanes" },
    el("div", { role: "rowgroup" }, el("div", { role: "row", class: "lane head" },
      ...COLUMNS.map(([title, kind]) => el("span", { role: "columnheader", class: kind }, title)))),
    rows);
  const empty = el("p", { class: "empty", hidden: true });
  const history = historySection();
  const element = el("div", { class: "overview" },
    el("h1", { tabindex: "-1" }, "Lanes"), verdict.element, problems, figures,
    el("div", { class: "filter" },
      el("span", {}, el("label", { for: "search" }, "Search"), search),
      el("span", {}, el("label", { for: "only" }, "Show"), only), found),
    lanes, empty, history.element);
  let last = null;
  let more = 0;

  function show() {
    if (!last) return;
    const sorted = last.appservices.toSorted(worseFirst).filter(wanted(search.value, only.value));
    cancelAnimationFrame(more);
    if (rows.childElementCount === 0 && sorted.length > AT_FIRST) {
      showRows(sorted.slice(0, AT_FIRST));
      more = requestAnimationFrame(() => setTimeout(() => showRows(sorted)));
    } else showRows(sorted);
    lanes.hidden = sorted.length === 0;
    empty.hidden = sorted.length > 0;
    setText(empty, emptiness(last.appservices.length));
    const all = last.appservices.length;
    setText(found, sorted.length === all ? counted(all, "lane")
      : `${number(sorted.length)} of ${counted(all, "lane")}`);
  }

  function showRows(sorted) {
    keyed(rows, sorted, (lane) => lane.id, laneRow);
    performance.mark(`lanes ${sorted.length}`);
  }

  return {
    title: "Lanes",
    element,
    overview(body) {
      last = body;
      verdict.show(body);
      keyed(problems, problemsOf(body), (text) => text, (text) => ({ element: el("li", {}, text) }));
      setText(figures, figuresOf(body));
      show();
    },
    leave() {
      cancelAnimationFrame(more);
      history.leave();
    },
  };
}

function wanted(search, only) {
  const words = search.toLowerCase().split(/\s+/).filter(Boolean);
  return (lane) => {
    if (only === "unwell" && lane.well) return false;
    if (only === "letters" && !lane.dead_letters) return false;
    if (only.startsWith("=") && lane.state !== only.slice(1)) return false;
    const text = [lane.id, lane.url_host, lane.worker, lane.last_outcome, lane.last_status,
      stateOf(lane).word, lane.why].join(" ").toLowerCase();
    return words.every((word) => text.includes(word));
  };
}

function emptiness(all) {
  if (all > 0) return "No lane is like this. Empty the search, or show all.";
  return "No appservice is registered yet. Write a registration with `appservice-bridge registration"
    + " new`, name its file in `registrations` of the bridge's configuration, and it appears here.";
}

/** One line; its link keeps its element, and so its focus, while the rest changes around it. */
function verdictLine() {
  const element = el("p", { class: "verdict" });
  const [before, link, after] = [el("span"), el("a"), el("span")];
  put(element, before, link, after);
  return {
    element,
    show({ appservices, homeserver, workers }) {
      const unwell = appservices.filter((lane) => !lane.well).sort(worseFirst);
      const rest = [
        homeserver?.well === false && "The capture of the homeserver's facts is not well. ",
        workers?.every((worker) => worker.alive === false) && "No worker is alive. ",
      ].filter(Boolean);
      const well = unwell.length === 0 && rest.length === 0;
      element.className = `verdict ${well ? "good" : "bad"}`;
      link.hidden = unwell.length === 0;
      if (unwell.length === 0) {
        setText(before, well ? allWell(appservices) : "");
        put(after, ...rest);
        return;
      }
      const [worst] = unwell;
      const verb = unwell.length === 1 ? "is" : "are";
      setText(before, `${number(unwell.length)} of ${counted(appservices.length, "lane")} ${verb} not well, first `);
      link.href = `#/${path("lane", worst.id)}`;
      setText(link, worst.id);
      put(after, `: ${stateOf(worst).word}`,
        ...(worst.not_well_since ? [", ", lasting(worst.not_well_since)] : []), ". ", ...rest);
    },
  };
}

function allWell(lanes) {
  if (lanes.length === 0) return "All is well: there is nothing to deliver to yet.";
  return `All is well: ${counted(lanes.length, "lane")}, ${oldestOf(lanes)}.`;
}

function oldestOf(lanes) {
  const oldest = Math.max(-1, ...lanes.map((lane) => lane.oldest_waiting_seconds ?? -1));
  return oldest < 0 ? "nothing waits" : `nothing waits for longer than ${duration(Math.ceil(oldest) || 1)}`;
}

function problemsOf({ homeserver, workers }) {
  const { capture, budget } = homeserver ?? {};
  const found = (capture?.problems ?? []).map((problem) => `Capture: ${problem}`);
  if (capture && capture.mode !== capture.wanted) {
    found.push(`Capture: by ${capture.mode} instead of ${capture.wanted}.`);
  }
  if (budget?.used_up) {
    found.push("Budget: it is used up, and of to-device messages only keys are stored. Deliver or discard"
      + " what waits, or raise budget.total_bytes.");
  }
  for (const worker of workers ?? []) {
    if (worker.alive === false && worker.lanes > 0) {
      found.push(`Worker ${worker.name} is gone; its ${counted(worker.lanes, "lane")} wait for another.`);
    }
  }
  return [...new Set(found)];
}

function figuresOf({ appservices, homeserver, workers }) {
  const sum = (key) => appservices.reduce((all, lane) => all + (lane[key] ?? 0), 0);
  const parts = [
    `${counted(sum("backlog"), "item")} (${bytes(sum("bytes_waiting"))}) wait`,
    `${rate(sum("per_second"))} delivered`,
    counted(sum("dead_letters"), "dead letter"),
  ];
  if (workers) {
    parts.push(`${counted(workers.filter((worker) => worker.alive !== false).length, "worker")} alive`);
  }
  const budget = homeserver?.budget;
  if (budget) parts.push(`${bytes(budget.used_bytes)} of ${bytes(budget.limit_bytes)} budget used`);
  return parts.join(" · ");
}

function laneRow(first) {
  const link = el("a", { href: `#/${path("lane", first.id)}` }, first.id);
  const state = badge();
  const cells = COLUMNS.map(([title, kind]) =>
    el("span", { role: "cell", class: kind, "data-title": title }));
  put(cells[0], link);
  const age = el("span", { class: "since" });
  put(cells[1], state.element, age);
  const element = el("div", { role: "row", class: "lane" }, ...cells);
  let shown = "";
  return {
    element,
    update(lane = first) {
      const now = JSON.stringify(lane);
      if (now === shown) return;
      shown = now;
      state.update(lane);
      element.className = lane.well ? "lane" : `lane unwell ${stateOf(lane).tone}`;
      put(age, ...(lane.well || !lane.not_well_since ? [] : [lasting(lane.not_well_since)]));
      cells[1].title = lane.why ?? "";
      const texts = [
        `${counted(lane.backlog, "item")}`, duration(lane.oldest_waiting_seconds),
        duration(lane.oldest_to_device_seconds), rate(lane.per_second), number(lane.dead_letters),
        lastAnswer(lane), lane.worker ?? "–",
      ];
      texts.forEach((text, at) => setText(cells[at + 2], text));
      cells[2].title = bytes(lane.bytes_waiting);
    },
  };
}

/** Closed at first: the chart's library is loaded when somebody wants to see it. */
function historySection() {
  const inside = el("div");
  let charts = null;
  const element = el("details", {
    class: "history",
    ontoggle: () => {
      charts?.leave();
      charts = element.open ? historyCharts(inside, null) : null;
    },
  }, el("summary", {}, "History of all lanes, the last hour"), inside);
  return { element, leave: () => charts?.leave() };
}

// Says numbers, ages and states to people: always with a unit.
import { el } from "./dom.js";

const NUMBER = new Intl.NumberFormat("en");
const ONE_DIGIT = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const MOMENT = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "medium" });
const CLOCK = new Intl.DateTimeFormat("en-GB", { timeStyle: "medium" });

/** The words of domain/lane_state.py, the worst first; nobody needs to see colours: see shapes.js. */
const STATES = {
  halted: { tone: "bad", shape: "octagon" },
  unserved: { tone: "bad", shape: "diamond" },
  failing: { tone: "bad", shape: "triangle" },
  disconnected: { tone: "bad", shape: "ring" },
  unregistered: { tone: "bad", shape: "cross" },
  behind: { tone: "warn", shape: "half" },
  going_live: { tone: "warn", shape: "hourglass" },
  paused: { tone: "warn", shape: "bars" },
  delivering: { tone: "good", shape: "arrow" },
  idle: { tone: "good", shape: "dot" },
  no_transport: { tone: "mute", shape: "dash" },
};
const RANKS = Object.keys(STATES);
const UNKNOWN = { tone: "bad", shape: "triangle" };
const spoken = (state) => String(state).replaceAll("_", " ");

export const STATE_WORDS = RANKS.map((state) => [state, spoken(state)]);

export const stateOf = ({ state }) => ({ ...(STATES[state] ?? UNKNOWN), word: spoken(state) });

const rank = ({ state, well }) => (well ? RANKS.length + (state === "no_transport") : RANKS.indexOf(state));
const from = (lane) => (lane.well ? 0 : lane.not_well_since ?? Number.MAX_VALUE);

/** For sorting: the worst first, then who is unwell for longest; lanes that are well stay put. */
export function worseFirst(one, other) {
  return rank(one) - rank(other) || from(one) - from(other) || (one.id < other.id ? -1 : 1);
}

export const number = (value) => NUMBER.format(value);

export function counted(count, one, many = `${one}s`) {
  return `${number(count)} ${count === 1 ? one : many}`;
}

export function bytes(value) {
  if (value === null || value === undefined) return "–";
  let rest = value;
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (rest < 1024 || unit === "GiB") return `${ONE_DIGIT.format(rest)} ${unit}`;
    rest /= 1024;
  }
  return "";
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 1) return "under 1 s";
  if (seconds < 120) return `${Math.floor(seconds)} s`;
  if (seconds < 7200) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86400)} days`;
}

export function rate(perSecond) {
  if (perSecond === null || perSecond === undefined) return "–";
  return `${ONE_DIGIT.format(perSecond)}/s`;
}

export const absolute = (ts) => MOMENT.format(new Date(ts));
export const clock = (ts) => CLOCK.format(new Date(ts));

export function ago(ts) {
  const seconds = (Date.now() - ts) / 1000;
  return seconds < 2 ? "just now" : `${duration(seconds)} ago`;
}

/** A moment as people say it, the exact one on hover; it ages by itself. */
export function since(ts, empty = "never") {
  if (ts === null || ts === undefined) return empty;
  return moment(ts, () => ago(ts));
}

/** For how long something has been so. */
export const lasting = (ts) => moment(ts, () => `for ${duration((Date.now() - ts) / 1000)}`);

function moment(ts, say) {
  const shown = el("time", { datetime: new Date(ts).toISOString(), title: absolute(ts) }, say());
  shown.say = say;
  return shown;
}

setInterval(() => {
  for (const each of document.querySelectorAll("time")) {
    if (each.say && each.textContent !== each.say()) each.textContent = each.say();
  }
}, 5000);

/** The last attempt's answer in one line. */
export function lastAnswer(lane) {
  if (!lane.last_outcome) return "nothing sent yet";
  const status = lane.last_status && !String(lane.last_outcome).includes(lane.last_status)
    ? ` (HTTP ${lane.last_status})` : "";
  const times = lane.failed_attempts > 1 ? `, ${counted(lane.failed_attempts, "time")}` : "";
  return `${String(lane.last_outcome).replaceAll("_", " ")}${status}${times}`;
}

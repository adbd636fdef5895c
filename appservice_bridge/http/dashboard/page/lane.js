// One appservice's page: is it well, since when not, why, what waits, what to do.
import { get, path } from "./api.js";
import { historyCharts } from "./charts.js";
import { el, keyed, put, row, section, setText, table, withCode } from "./dom.js";
import { buttons } from "./lane_actions.js";
import { lettersSection } from "./letters.js";
import { badge } from "./shapes.js";
import {
  absolute, bytes, clock, counted, duration, lastAnswer, lasting, number, rate, since,
} from "./words.js";

const AGAIN_MS = 4000;

/** The page at `#/lane/ID`; `may(role)` says what the token allows. */
export function lanePage(id, may) {
  const state = badge();
  const answer = el("div", { class: "answer" });
  const facts = el("dl", { class: "facts" });
  const devices = devicesSection();
  const transactions = transactionsSection();
  const letters = lettersSection(id, may, () => look());
  const acts = buttons(id, may, () => look());
  const charts = el("div");
  const known = el("div", { hidden: true }, acts.element,
    section("Now", facts), devices.element, letters.element, transactions.element,
    section("The last hour", charts));
  const failed = el("p", { class: "notice", role: "status", hidden: true });
  const element = el("div", { class: "one" },
    el("p", { class: "back" }, el("a", { href: "#/" }, "All lanes")),
    el("div", { class: "title" }, el("h1", { tabindex: "-1" }, id), state.element),
    failed, answer, known);
  const history = historyCharts(charts, id);
  const away = new AbortController();
  let lookedAt = 0;
  let looking = null;

  async function look() {
    lookedAt = Date.now();
    looking ??= refresh().finally(() => (looking = null));
    await looking;
  }

  async function refresh() {
    const one = path("appservices", id);
    const asked = { signal: away.signal };
    try {
      const [lane, sent, dead] = await Promise.all([
        get(one, asked),
        listed(`${one}/transactions?limit=50`, asked, { transactions: [] }),
        listed(`${one}/dead-letters?limit=${letters.most()}`, asked, { dead_letters: [] }),
      ]);
      failed.hidden = true;
      known.hidden = false;
      state.update(lane);
      put(answer, ...answered(lane));
      acts.show(lane);
      keyed(facts, factsOf(lane), ([name]) => name, fact);
      devices.show(lane);
      transactions.show(sent.transactions);
      letters.show(dead.dead_letters, lane.dead_letters);
    } catch (error) {
      if (away.signal.aborted) return;
      failed.hidden = false;
      setText(failed, error.status === 404
        ? "There is no appservice of this id. Its registration may have been removed."
        : `What follows is from ${lookedAt ? clock(lookedAt) : "before"}: ${error.message}`);
    }
  }

  look();
  return {
    title: id,
    element,
    overview() {
      if (Date.now() - lookedAt >= AGAIN_MS) look();
    },
    leave() {
      away.abort();
      history.leave();
    },
  };
}

/** What an appservice without a lane has none of. */
async function listed(where, asked, nothing) {
  try {
    return await get(where, asked);
  } catch (error) {
    if (error.status === 404) return nothing;
    throw error;
  }
}

/** The one look: well or not, since when, why, and what to do. */
function answered(lane) {
  const low = (lane.devices ?? []).filter((device) => device.low).length;
  const waits = lane.backlog
    ? `${counted(lane.backlog, "item")} (${bytes(lane.bytes_waiting)}) wait` : "Nothing waits";
  const key = lane.oldest_to_device_seconds === null || lane.oldest_to_device_seconds === undefined
    ? "no room key among the next 200" : `the oldest room key for ${duration(lane.oldest_to_device_seconds)}`;
  const keys = low ? `${counted(low, "device")} ${low === 1 ? "runs" : "run"} out of keys`
    : "no device runs out of keys";
  const sentence = el("p", { class: `verdict ${lane.well ? "good" : "bad"}` });
  if (lane.well) put(sentence, "It is well. ");
  else {
    const from = lane.not_well_since
      ? [` since ${absolute(lane.not_well_since)}, `, lasting(lane.not_well_since)] : [];
    put(sentence, "It is not well", ...from, ...(lane.why ? [": ", ...withCode(lane.why)] : []), ".");
  }
  return [
    sentence,
    lane.mend && el("p", { class: "mend" }, el("strong", {}, "What to do: "), ...withCode(lane.mend), "."),
    el("p", {}, `${waits}${lane.backlog ? `, ${key}` : ""}; ${keys}.`),
  ];
}

function factsOf(lane) {
  const flight = lane.in_flight;
  return [
    ["Waits", kindsOf(lane)],
    ["Oldest waits for", duration(lane.oldest_waiting_seconds)],
    ["Oldest room key waits for", duration(lane.oldest_to_device_seconds)],
    ["Rate, last minute", rate(lane.per_second)],
    ["Last answer", lastAnswer(lane)],
    ["Last acknowledgement", lane.last_ack_ts],
    ["Next attempt", lane.due_in_seconds > 0 && !lane.well ? `in ${duration(lane.due_in_seconds)}` : "when something waits"],
    ["In flight", flight ? flightOf(flight) : "nothing"],
    ["Delivered so far", lane.delivered === undefined ? "–" : counted(lane.delivered, "item")],
    ["Goes to", [lane.transport, lane.url_host].filter(Boolean).join(", ") || "–"],
    ["Served by", lane.worker ?? "no worker"],
  ];
}

function flightOf(flight) {
  const told = (flight.device_lists ?? 0) + (flight.device_keys ?? 0);
  return [
    `${flight.txn_id}: ${counted(flight.items, "item")}`, told && counted(told, "device update"),
    bytes(flight.bytes), counted(flight.attempts, "failed attempt"),
    flight.doubtful && "may have been processed",
    flight.bury_asked_since && `to be set aside, since ${absolute(flight.bury_asked_since)}`,
  ].filter(Boolean).join(", ");
}

function kindsOf(lane) {
  const kinds = Object.entries(lane.waiting ?? {}).filter(([, count]) => count > 0)
    .map(([kind, count]) => `${number(count)} ${kind.replaceAll("_", " ")}`);
  if (lane.device_updates) kinds.push(`${counted(lane.device_updates, "device update")}`);
  return kinds.join(", ") || "nothing";
}

function fact([name]) {
  const value = el("dd");
  const element = el("div", {}, el("dt", {}, name), value);
  return {
    element,
    update([, shown]) {
      const isTime = name === "Last acknowledgement";
      if (isTime) put(value, since(shown, "none yet"));
      else setText(value, shown);
    },
  };
}

const DEVICES = [
  ["Device", "id", (one) => `${one.user_id} ${one.device_id}`],
  ["Keys", "", (one) => el("span", { class: `badge ${one.low ? "bad" : "good"}` }, one.low ? "running out" : "enough")],
  ["One-time keys", "", (one) => keysOf(one.one_time_keys)],
  ["Unused fallback keys", "", (one) => one.unused_fallback === null ? "not known" : one.unused_fallback.join(", ") || "none"],
  ["What to do", "wide", (one) => one.why ?? "nothing"],
];

function keysOf(counts) {
  if (!counts) return "not known";
  const parts = Object.entries(counts).map(([algorithm, count]) => `${number(count)} ${algorithm}`);
  return parts.join(", ") || "none";
}

function devicesSection() {
  const { element: wide, body } = table("Devices, those that run out of keys first", DEVICES);
  const empty = el("p", { class: "empty" }, "No device of its users is known. A bot that is to read encrypted"
    + " messages logs in with a device and uploads keys; until then nobody can write to it in secret.");
  return {
    element: section("Devices and their keys", wide, empty),
    show({ devices = [] }) {
      wide.hidden = devices.length === 0;
      empty.hidden = devices.length > 0;
      keyed(body, devices, (one) => `${one.user_id} ${one.device_id}`, row(DEVICES));
    },
  };
}

const TRANSACTIONS = [
  ["Transaction", "id", (one) => one.txn_id],
  ["State", "", (one) => String(one.state).replaceAll("_", " ")],
  ["Items", "", itemsOf],
  ["Size", "n", (one) => bytes(one.bytes)],
  ["Sealed", "", (one) => since(one.sealed_at, "–")],
  ["Acknowledged", "", (one) => since(one.acked_at, "not yet")],
  ["Refusals counted", "n", (one) => one.refusals ? number(one.refusals) : "–"],
];

function itemsOf(one) {
  const kinds = Object.entries(one.items ?? {}).map(([kind, count]) => `${number(count)} ${kind.replaceAll("_", " ")}`);
  return kinds.join(", ") || counted(one.items_total ?? 0, "item");
}

function transactionsSection() {
  const { element: wide, body } = table("Transactions, the newest first", TRANSACTIONS);
  const empty = el("p", { class: "empty" }, "None is sealed. Acknowledged ones are listed where"
    + " delivery.keep_delivered_seconds keeps them.");
  return {
    element: section("Transactions", wide, empty),
    show(transactions) {
      wide.hidden = transactions.length === 0;
      empty.hidden = transactions.length > 0;
      keyed(body, transactions, (one) => one.txn_id, row(TRANSACTIONS));
    },
  };
}

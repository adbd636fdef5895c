// The buttons of a lane: those that the token's role allows.
import { path, post } from "./api.js";
import { el, setText } from "./dom.js";
import { carryOut, confirmed } from "./telling.js";
import { counted } from "./words.js";

const VERBS = [
  { verb: "pause", label: "Pause", done: "paused; what comes waits until it is resumed" },
  { verb: "resume", label: "Resume", done: "resumed" },
  { verb: "retry", label: "Retry now", done: "its rest or halt is ended; the next attempt begins" },
  { verb: "ping", label: "Ping", done: "pinged" },
];

const RARE = [
  {
    verb: "retry", label: "Retry, split", body: { split: true },
    done: "what is refused will be split to find the item at fault",
    ask: {
      title: "Split the transaction in flight?",
      text: "Its items are sent again under new ids. If the appservice processed some of it already, it gets"
        + " these twice, and nothing takes that back.",
      yes: "Split it",
    },
  },
  {
    verb: "resync", label: "Resync", done: "everyone it shares rooms with, and all keys, will be told again",
    ask: {
      title: "Tell it everything of devices again?",
      text: "It hears of every user it shares rooms with and of the keys of all its devices. That may be a lot"
        + " for it, and cannot be called off.",
      yes: "Resync",
    },
  },
  {
    verb: "backfill", label: "Backfill", done: "what the homeserver's inbox still held is taken in",
    ask: {
      title: "Deliver what the inbox still holds?",
      text: "To-device messages from before the bridge came are put behind all that waits. What is put there"
        + " cannot be taken back.",
      yes: "Backfill",
    },
  },
];

/** The buttons of the appservice `id`; none for who may only look. `show(lane)` keeps them apt. */
export function buttons(id, may, after) {
  if (!may("operator")) {
    const hint = "Your token may look. To act it needs the role operator.";
    return { element: el("p", { class: "hint" }, hint), show() {} };
  }
  const one = (each) => button(id, each, after);
  const [pause, resume, ...others] = VERBS.map(one);
  resume.hidden = true;
  const aside = setAside(id, after);
  return {
    element: el("div", { class: "actions", role: "group", "aria-label": "Actions" },
      pause, resume, ...others,
      el("details", { class: "rare" }, el("summary", {}, "More"),
        el("div", { class: "buttons" }, ...RARE.map(one), aside.element, replay(id, after)))),
    show(lane) {
      aside.show(lane);
      const paused = lane.state === "paused" || Boolean(lane.paused_since);
      const [now, before] = paused ? [resume, pause] : [pause, resume];
      now.hidden = false;
      if (document.activeElement === before) now.focus({ preventScroll: true });
      before.hidden = true;
    },
  };
}

function button(id, { verb, label, body, done, ask }, after) {
  const element = el("button", { type: "button", "data-verb": verb }, label);
  element.addEventListener("click", async () => {
    if (ask && !(await confirmed(ask))) return;
    await carryOut(element, async () => {
      const told = await post(path("appservices", id, verb), body);
      return `${id}: ${saidOf(verb, told) ?? done}`;
    }, after);
  });
  return element;
}

/** For the one item, user or device that is left in flight; what was shown is what is named. */
function setAside(id, after) {
  const element = el("button", { type: "button", class: "danger", "data-verb": "bury" }, "Set aside");
  const hint = el("span", { id: "set-aside-hint", class: "hint" });
  element.setAttribute("aria-describedby", hint.id);
  let flight = null;
  element.addEventListener("click", async () => {
    const { txn_id: bury, doubtful } = flight;
    const ask = {
      title: `Set ${bury} aside?`,
      text: "The one item in it becomes a dead letter and is not sent again, and the lane goes on."
        + (doubtful ? " It may have been processed." : "")
        + " Redrive puts it back, but behind all that waits: its place cannot be had again.",
      yes: "Set it aside",
    };
    if (!(await confirmed(ask))) return;
    await carryOut(element, async () => {
      const told = await post(path("appservices", id, "retry"), { bury });
      return `${id}: ${saidOf("bury", told) ?? `${bury} becomes a dead letter, unless its ack comes first`}`;
    }, after);
  });
  return {
    element: el("span", { class: "aside" }, element, hint),
    show(lane) {
      flight = lane.in_flight ?? null;
      const not = whyNotAside(flight, lane.state === "paused" || Boolean(lane.paused_since));
      element.disabled = not !== null;
      setText(hint, not ?? "");
    },
  };
}

/** Null where one thing is in flight, and nobody said so yet. */
function whyNotAside(flight, paused) {
  if (flight === null) return "Nothing is in flight.";
  const things = flight.items + flight.device_lists + flight.device_keys;
  if (things !== 1) return `${counted(things, "thing")} in flight: retry and split until one is left.`;
  if (flight.bury_asked_since) return `${flight.txn_id} is to be set aside.`;
  return paused ? "It is paused: resume it first." : null;
}

/** What became of it, where the answer says more than that it was done. */
function saidOf(verb, told) {
  if (verb === "ping" && told.outcome !== "answered") {
    throw new Error([told.errcode, told.mend].filter(Boolean).join(": "));
  }
  if (verb === "ping") return `answered the ping in ${told.milliseconds} ms; its rest is ended`;
  if (verb === "backfill") {
    return `${counted(told.messages, "message")} of ${counted(told.devices, "device")} will be delivered`;
  }
  if (told.served === false) return "noted; it takes effect when a worker serves the lane";
  return null;
}

function replay(id, after) {
  const hours = el("input", { id: "replay-hours", type: "number", min: "1", max: "720", value: "1" });
  const element = el("button", { type: "button", "data-verb": "replay" }, "Replay");
  element.addEventListener("click", async () => {
    if (!hours.reportValidity()) return;
    const ask = {
      title: `Deliver the last ${hours.value} h again?`,
      text: "What was acknowledged and kept is sent once more, behind all that waits: the appservice gets it"
        + " twice, and nothing takes that back.",
      yes: "Replay",
    };
    if (!(await confirmed(ask))) return;
    await carryOut(element, async () => {
      const told = await post(path("appservices", id, "replay"), { since_seconds: hours.valueAsNumber * 3600 });
      const items = Object.values(told.items).reduce((all, count) => all + count, 0);
      return `${id}: ${counted(items, "item")} will be delivered again`;
    }, after);
  });
  return el("span", { class: "replay" }, el("label", { for: hours.id }, "Hours"), hours, element);
}

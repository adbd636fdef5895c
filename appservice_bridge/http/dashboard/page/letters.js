// Dead letters of a lane: what was set aside, chosen and put back or discarded. Never what is in them.
import { post } from "./api.js";
import { el, keyed, put, row, section, setText, table } from "./dom.js";
import { carryOut, confirmed } from "./telling.js";
import { bytes, counted, number, since } from "./words.js";

const AT_FIRST = 50;
const AT_MOST = 500; // as many as the bridge lists at once

/** The section; `after` is called when some were put back or discarded. */
export function lettersSection(id, may, after) {
  const chosen = new Set();
  const columns = [
    ...(may("operator") ? [["Choose", "", (one) => choice(one, chosen, showChosen)]] : []),
    ["Set aside", "", (one) => since(one.buried_at)],
    ["Kind", "", (one) => one.kind.replaceAll("_", " ")],
    ["For", "id", (one) => [one.user_id, one.device_id].filter(Boolean).join(" ") || "–"],
    ["Size", "n", (one) => bytes(one.bytes)],
    ["Reason", "wide", reasonOf],
    ["Redrive", "", (one) => (one.redrivable ? "possible" : "not possible")],
  ];
  const { element: wide, body } = table("Dead letters, the newest first", columns);
  const empty = el("p", { class: "empty" }, "None. What the appservice refuses for ever, or what cannot be"
    + " delivered, is set aside here.");
  const shortened = el("p", { class: "hint", hidden: true });
  const more = el("button", { type: "button", hidden: true }, "Show more");
  let most = AT_FIRST;
  const acts = may("operator") ? actions(chosen, may, after) : null;
  let letters = [];

  function showChosen() {
    acts?.show(letters.filter((one) => chosen.has(one.id)));
  }

  more.addEventListener("click", () => {
    most = AT_MOST;
    after();
  });
  acts?.all.addEventListener("click", () => {
    const every = chosen.size < letters.length;
    for (const box of body.querySelectorAll("input")) box.checked = every;
    chosen.clear();
    if (every) letters.forEach((one) => chosen.add(one.id));
    showChosen();
  });

  return {
    element: section("Dead letters", acts?.element ?? null, wide, empty, shortened, more),
    most: () => most,
    show(found, all) {
      letters = found;
      wide.hidden = found.length === 0;
      empty.hidden = found.length > 0;
      if (acts) acts.element.hidden = found.length === 0;
      shortened.hidden = all <= found.length;
      more.hidden = shortened.hidden || most === AT_MOST;
      setText(shortened, `The newest ${number(found.length)} of ${counted(all, "dead letter")} are shown.`);
      const there = new Set(found.map((one) => one.id));
      for (const each of chosen) if (!there.has(each)) chosen.delete(each);
      keyed(body, found, (one) => one.id, row(columns));
      showChosen();
    },
  };
}

function choice(one, chosen, changed) {
  const short = one.id.slice(0, 8);
  const box = el("input", { type: "checkbox", "aria-label": `Choose dead letter ${short}` });
  box.checked = chosen.has(one.id);
  box.addEventListener("change", () => {
    if (box.checked) chosen.add(one.id);
    else chosen.delete(one.id);
    changed();
  });
  return box;
}

function reasonOf(one) {
  const answer = [one.status, one.errcode].filter(Boolean).join(" ");
  return [one.reason, answer && `(${answer})`, one.txn_id && `in ${one.txn_id}`].filter(Boolean).join(" ");
}

function actions(chosen, may, after) {
  const count = el("span", { role: "status" });
  const all = el("button", { type: "button" }, "Choose all shown");
  const redrive = el("button", { type: "button", "data-verb": "redrive" }, "Redrive");
  const discard = el("button", { type: "button", class: "danger", "data-verb": "discard" }, "Discard");
  let letters = [];
  const ids = (which) => ({ ids: which.map((one) => one.id) });

  redrive.addEventListener("click", () => carryOut(redrive, async () => {
    return redriven(await post("dead-letters/redrive", ids(letters)));
  }, after));
  discard.addEventListener("click", async () => {
    const them = counted(letters.length, "dead letter");
    const ask = {
      title: `Discard ${them} for good?`,
      text: "They are deleted and will never be delivered. Nothing brings them back.",
      yes: `Discard ${them}`,
    };
    if (!(await confirmed(ask))) return;
    await carryOut(discard, async () => {
      const { discarded } = await post("dead-letters/discard", ids(letters));
      return `${counted(discarded.length, "dead letter")} discarded`;
    }, after);
  });
  return {
    all,
    element: el("div", { class: "actions" }, all, redrive, may("admin") ? discard : null, count),
    show(now) {
      letters = now;
      redrive.disabled = !letters.some((one) => one.redrivable);
      discard.disabled = letters.length === 0;
      put(count, letters.length ? `${number(letters.length)} chosen` : "none chosen");
    },
  };
}

function redriven({ redriven: done, refused }) {
  const reasons = [...new Set(refused.map((one) => one.reason))].join("; ");
  return `${counted(done.length, "dead letter")} will be delivered, behind all that waits`
    + (refused.length ? `; ${counted(refused.length, "other")} cannot be: ${reasons}` : "");
}

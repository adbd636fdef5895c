// Who changed what, and when: for admins.
import { get } from "./api.js";
import { el, keyed, row, section, table } from "./dom.js";
import { since } from "./words.js";

const AT_ONCE = 100;

const COLUMNS = [
  ["When", "", (one) => since(one.at)],
  ["Who", "id", (one) => [one.name, one.role && `(${one.role})`].filter(Boolean).join(" ")],
  ["From", "", (one) => one.address ?? "–"],
  ["Did", "", (one) => one.action],
  ["To", "id", (one) => [one.appservice, ...one.subjects].filter(Boolean).join(", ") || "–"],
  ["Outcome", "wide", (one) => one.outcome ?? "–"],
];

/** The page at `#/audit`. */
export function auditPage() {
  const { element: wide, body } = table("What was changed, the newest first", COLUMNS);
  const empty = el("p", { class: "empty", hidden: true }, "Nothing was changed yet. Every order is noted here, from this"
    + " page and from the command line.");
  const failed = el("p", { class: "notice", role: "alert", hidden: true });
  const older = el("button", { type: "button", hidden: true }, "Show older ones");
  let entries = [];
  let before = null;

  async function look(from = null) {
    try {
      const told = await get(`audit?limit=${AT_ONCE}${from === null ? "" : `&before=${encodeURIComponent(from)}`}`);
      entries = from === null ? told.entries : entries.concat(told.entries);
      before = told.before ?? null;
      failed.hidden = true;
    } catch (error) {
      failed.hidden = false;
      failed.textContent = `The audit cannot be had: ${error.message}`;
    }
    wide.hidden = entries.length === 0;
    empty.hidden = entries.length > 0 || !failed.hidden;
    older.hidden = before === null;
    keyed(body, entries, (one) => String(one.id), row(COLUMNS));
  }

  older.addEventListener("click", () => look(before));
  look();
  return {
    title: "Audit",
    element: el("div", {}, el("h1", { tabindex: "-1" }, "Audit"), failed,
      section("Changes", wide, empty, older)),
    overview() {},
    leave() {},
  };
}

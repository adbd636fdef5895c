// Asks before what cannot be undone, and tells what became of what was asked.
import { el, put } from "./dom.js";

const STAYS_MS = 12000;

/** Whether the person said yes. Escape, and a click on Cancel, mean no. */
export function confirmed({ title, text, yes }) {
  const dialog = document.getElementById("confirm");
  put(dialog.querySelector("#confirm-title"), title);
  put(dialog.querySelector("#confirm-text"), text);
  put(dialog.querySelector("#confirm-yes"), yes);
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

/** Says it in the corner, and to those who listen to the page. */
export function tell(text, tone = "good") {
  const said = document.getElementById("said");
  const close = el("button", { type: "button", "aria-label": "Close this message" }, "×");
  const message = el("p", { class: tone }, text, close);
  close.addEventListener("click", () => message.remove());
  said.append(message);
  while (said.childElementCount > 4) said.firstElementChild.remove();
  if (tone === "good") setTimeout(() => message.remove(), STAYS_MS);
}

/** Does it while the button is off, and tells what came of it; `after` in either case. */
export async function carryOut(button, work, after) {
  button.disabled = true;
  try {
    tell(await work());
  } catch (error) {
    tell(`${button.textContent}: ${error.message}`, "bad");
  } finally {
    button.disabled = false;
    if (document.activeElement === document.body) button.focus({ preventScroll: true });
    await after();
  }
}

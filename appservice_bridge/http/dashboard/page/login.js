// Asks for a token, and says where one is had.
import { get, keep } from "./api.js";
import { el } from "./dom.js";

/** The page without a token; `entered({name, role})` once one is good. */
export function loginPage(entered, why = "") {
  const token = el("input", {
    id: "token", type: "password", autocomplete: "off", spellcheck: "false", required: true,
    "aria-describedby": "login-error",
  });
  const failed = el("p", { id: "login-error", class: "notice", role: "alert" }, why);
  failed.hidden = !why;
  const enter = el("button", { class: "primary" }, "Log in");
  const form = el("form", { class: "login" },
    el("h1", { tabindex: "-1" }, "Log in"),
    el("label", { for: "token" }, "Admin token"), token, failed, enter,
    el("p", { class: "hint" }, "Tokens are named in ", el("code", {}, "admin.tokens"), " of the bridge's configuration: each has"
      + " a name, a role (viewer, operator or admin) and a file that holds it. This tab keeps yours until it is closed."));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    enter.disabled = true;
    try {
      const shown = token.value.trim();
      const who = await get("whoami", { shown });
      keep(shown);
      entered(who);
    } catch (error) {
      failed.hidden = false;
      failed.textContent = error.status === 401 ? "This is none of the bridge's tokens." : error.message;
      token.select();
    } finally {
      enter.disabled = false;
    }
  });
  return { title: "Log in", element: form, overview() {}, leave() {}, focus: () => token.focus() };
}

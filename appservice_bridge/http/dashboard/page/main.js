// Puts the page together: who is here, which page is shown, and whether what it shows is fresh.
import { forget, get, token } from "./api.js";
import { auditPage } from "./audit.js";
import { el, put } from "./dom.js";
import { lanePage } from "./lane.js";
import { Live } from "./live.js";
import { loginPage } from "./login.js";
import { overviewPage } from "./overview.js";
import { clock, since } from "./words.js";

const ROLES = ["viewer", "operator", "admin"];

const content = document.getElementById("content");
const connection = document.getElementById("connection");
const who = document.getElementById("who");
const logout = document.getElementById("logout");

let me = null;
let live = null;
let page = null;
let latest = null;
let latestAt = null;

const may = (role) => me !== null && ROLES.indexOf(me.role) >= ROLES.indexOf(role);

function show(next, { focus = true } = {}) {
  page?.leave();
  page = next;
  document.title = `${next.title} · appservice_bridge`;
  put(content, next.element);
  if (latest) next.overview(latest);
  scrollTo(0, 0);
  if (next.focus) next.focus();
  else if (focus) content.querySelector("h1")?.focus({ preventScroll: true });
}

function route(options) {
  if (me === null) return;
  const [, name = "", rest = ""] = /^#\/([^/]*)\/?(.*)$/.exec(location.hash) ?? [];
  for (const link of document.querySelectorAll("[data-page]")) {
    const here = link.dataset.page === (name === "audit" ? "audit" : name === "" ? "overview" : "");
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (name === "lane" && rest) return show(lanePage(decoded(rest), may), options);
  if (name === "audit" && may("admin")) return show(auditPage(), options);
  show(overviewPage(), options);
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part; // a stray percent sign, typed by hand
  }
}

function enter(operator, options) {
  me = operator;
  who.textContent = `${me.name} (${me.role})`;
  logout.hidden = false;
  document.querySelector("[data-page=audit]").hidden = !may("admin");
  document.body.classList.add("inside");
  live = new Live({ overview: took, lost });
  live.run();
  put(connection, "Connecting…");
  route(options);
}

function leave(why) {
  live?.stop();
  live = me = latest = latestAt = null;
  forget();
  who.textContent = "";
  logout.hidden = true;
  document.querySelector("[data-page=audit]").hidden = true;
  document.body.classList.remove("inside", "stale");
  put(connection);
  show(loginPage(enter, why));
}

function took(body) {
  if (me === null) return;
  latest = body;
  latestAt = Date.now();
  document.body.classList.remove("stale");
  if (connection.dataset.is !== "live") {
    connection.dataset.is = "live";
    put(connection, el("span", { class: "badge good" }, "Live"));
  }
  connection.title = `as of ${clock(latestAt)}`;
  page.overview(body);
}

function lost(error, rest) {
  if (me === null) return;
  if (error?.status === 401) return leave("This token is no longer accepted: log in with another one.");
  if (error === null && connection.dataset.is === "live") {
    // The bridge ends a stream now and then, so that the token is shown again.
    connection.dataset.is = "again";
    return;
  }
  connection.dataset.is = "lost";
  document.body.classList.add("stale");
  const old = latestAt === null ? ["there are no figures yet"]
    : ["the figures are from ", clock(latestAt), ", ", since(latestAt)];
  const why = error?.status ? ` (${error.message})` : "";
  put(connection, el("span", { class: "badge bad" }, "Connection lost"), " ", ...old, why,
    `; trying again in ${Math.ceil(rest / 1000)} s`);
}

async function begin() {
  if (token() === null) return show(loginPage(enter));
  try {
    // Both at once: what is shown first needs both.
    const [operator, overview] = await Promise.all([get("whoami"), get("appservices")]);
    latest = overview;
    latestAt = Date.now();
    enter(operator, { focus: false });
  } catch (error) {
    if (error.status === 401) leave("This token is no longer accepted: log in with another one.");
    else {
      put(content, el("p", { class: "notice", role: "alert" }, `${error.message} Trying again…`));
      setTimeout(begin, 3000);
    }
  }
}

logout.addEventListener("click", () => leave(""));
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address' hash is the page
  content.focus();
});
addEventListener("hashchange", () => route());
begin();

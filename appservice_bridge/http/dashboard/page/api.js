// Asks the admin API with the token of this tab.

const KEPT_AS = "appservice_bridge.token";
const ROOT = new URL("_appservice_bridge/v1/", document.baseURI);

/** An answer that was no success; `message` is fit to be shown. */
export class Refused extends Error {
  constructor(status, errcode, message) {
    super(message);
    this.status = status;
    this.errcode = errcode;
  }
}

export const token = () => sessionStorage.getItem(KEPT_AS);
export const keep = (value) => sessionStorage.setItem(KEPT_AS, value);
export const forget = () => sessionStorage.removeItem(KEPT_AS);

/** A path below the API's root, each part encoded: ids may hold any character. */
export const path = (...parts) => parts.map(encodeURIComponent).join("/");

/** An answer whose body is still to be read. Throws Refused; also where nobody answers. */
export async function open(where, { method = "GET", body, signal, shown = token() } = {}) {
  let answer;
  try {
    answer = await fetch(new URL(where, ROOT), {
      method,
      signal,
      cache: "no-store",
      credentials: "omit",
      headers: { Authorization: `Bearer ${shown}`, ...(body && { "Content-Type": "application/json" }) },
      body: body && JSON.stringify(body),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "", "The bridge does not answer.");
  }
  if (!answer.ok) throw await refusal(answer);
  return answer;
}

export async function get(where, options) {
  return (await open(where, options)).json();
}

export const post = (where, body = {}) => get(where, { method: "POST", body });

async function refusal(answer) {
  let told = {};
  try {
    told = await answer.json();
  } catch {
    // something before the bridge answered
  }
  const message = told.error ? String(told.error) : `HTTP ${answer.status}`;
  return new Refused(answer.status, told.errcode ?? "", message);
}

// Builds elements out of data. Text is only ever set as text: there is no way from here to markup.

/** An element; `null` and `false` among attributes and children are left out. */
export function el(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === false || value === undefined) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : String(value));
  }
  put(element, ...children);
  return element;
}

/** What is inside from now on; strings become text. */
export function put(element, ...children) {
  element.replaceChildren(
    ...children.flat().filter((child) => child !== null && child !== false && child !== undefined));
  return element;
}

/** Sets a text where it changed, so that nothing is laid out for what stayed. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/**
 * Makes the children of `parent` those of `items`, in their order. Each keeps its element, and with
 * it focus, selection and place, for as long as its key is there.
 *
 * @param make (item) => {element, update(item)}
 */
export function keyed(parent, items, keyOf, make) {
  const known = (parent.keyed ??= new Map());
  const focused = parent.contains(document.activeElement) ? document.activeElement : null;
  const gone = new Set(known.keys());
  let before = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    gone.delete(key);
    let row = known.get(key);
    if (!row) known.set(key, (row = make(item)));
    row.update?.(item);
    if (row.element === before) before = before.nextElementSibling;
    else parent.insertBefore(row.element, before);
  }
  for (const key of gone) {
    known.get(key).element.remove();
    known.delete(key);
  }
  if (focused?.isConnected && document.activeElement !== focused) {
    focused.focus({ preventScroll: true }); // moving an element takes its focus away
  }
}

/** Text in which commands stand between backticks, as the bridge writes it. */
export function withCode(text) {
  return text.split("`").map((part, at) => (at % 2 ? el("code", {}, part) : part));
}

let labelled = 0;

/** A part of a page with its heading. */
export function section(title, ...children) {
  labelled += 1;
  const heading = el("h2", { id: `part-${labelled}` }, title);
  return el("section", { "aria-labelledby": heading.id }, heading, ...children);
}

/** A table: headings by `columns`, a body to give to `keyed`; it scrolls by itself if it is wide. */
export function table(caption, columns) {
  const body = el("tbody");
  const head = columns.map(([title, kind]) => el("th", { scope: "col", class: kind }, title));
  const element = el("div", { class: "scroller", tabindex: "0", role: "region", "aria-label": caption },
    el("table", {}, el("caption", { class: "unseen" }, caption),
      el("thead", {}, el("tr", {}, ...head)), body));
  return { element, body };
}

/** A row of such a table: `cells` make (item) => text or element, by column. */
export function row(columns) {
  return (first) => {
    const cells = columns.map(([, kind]) => el("td", { class: kind }));
    const element = el("tr", {}, ...cells);
    let shown = "";
    return {
      element,
      update(item = first) {
        const now = JSON.stringify(item);
        if (now === shown) return;
        shown = now;
        columns.forEach(([, , cell], at) => put(cells[at], cell(item)));
      },
    };
  };
}

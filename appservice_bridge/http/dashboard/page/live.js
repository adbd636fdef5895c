// The stream of overviews: read with fetch, for an EventSource cannot show a token.
import { open } from "./api.js";

const SILENT_AFTER_MS = 15000; // the bridge sends something every few seconds
const LONGEST_REST_MS = 30000;

/** Parts of `text/event-stream`, as they become whole. */
export class EventReader {
  #rest = "";

  /** What is whole after this: a list of {event, data}. */
  push(text) {
    const blocks = (this.#rest + text).replaceAll("\r\n", "\n").split("\n\n");
    this.#rest = blocks.pop();
    return blocks.map(parsed).filter((each) => each.data !== "");
  }
}

function parsed(block) {
  const found = { event: "message", data: "" };
  for (const line of block.split("\n")) {
    const [, name, value] = /^([^:]*):? ?(.*)$/.exec(line);
    if (name === "event") found.event = value;
    if (name === "data") found.data += found.data ? `\n${value}` : value;
  }
  return found;
}

/**
 * Stays connected until `stop`.
 *
 * @param on {overview(body), connected(), lost(error, retryInMs)}: lost is told each time anew.
 */
export class Live {
  #on;
  #stopped = false;
  #failures = 0;
  #abort = new AbortController();
  #hurry = () => {};

  constructor(on) {
    this.#on = on;
    addEventListener("online", this.#wake);
    document.addEventListener("visibilitychange", this.#wake);
  }

  #wake = () => {
    if (!document.hidden) this.#hurry();
  };

  stop() {
    this.#stopped = true;
    this.#abort.abort();
    this.#hurry();
    removeEventListener("online", this.#wake);
    document.removeEventListener("visibilitychange", this.#wake);
  }

  async run() {
    while (!this.#stopped) {
      let error = null;
      try {
        await this.#listen();
      } catch (thrown) {
        error = thrown;
      }
      if (this.#stopped) return;
      this.#failures += 1;
      const rest = Math.min(LONGEST_REST_MS, 500 * 2 ** this.#failures) * (0.75 + Math.random() / 2);
      this.#on.lost(error, rest);
      await new Promise((resolve) => {
        this.#hurry = resolve;
        setTimeout(resolve, rest);
      });
    }
  }

  /** Until the stream ends, or nothing has come for a while. */
  async #listen() {
    this.#abort = new AbortController();
    let silence = setTimeout(() => this.#abort.abort(), SILENT_AFTER_MS);
    try {
      const answer = await open("events", { signal: this.#abort.signal });
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      const events = new EventReader();
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return;
        clearTimeout(silence);
        silence = setTimeout(() => this.#abort.abort(), SILENT_AFTER_MS);
        for (const each of events.push(value)) this.#take(each);
      }
    } finally {
      clearTimeout(silence);
    }
  }

  #take({ event, data }) {
    if (event !== "overview") return;
    this.#failures = 0;
    this.#on.overview(JSON.parse(data));
  }
}

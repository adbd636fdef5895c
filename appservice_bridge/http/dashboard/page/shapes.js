// A shape for each state, so that nobody needs to see colours.
import { stateOf } from "./words.js";

const SVG = "http://www.w3.org/2000/svg";
const PATHS = {
  dot: "M8 2a6 6 0 1 1 0 12a6 6 0 1 1 0-12z",
  ring: "M8 2a6 6 0 1 1 0 12a6 6 0 1 1 0-12zM8 4.2a3.8 3.8 0 1 0 0 7.6a3.8 3.8 0 1 0 0-7.6z",
  half: "M8 2a6 6 0 1 1 0 12a6 6 0 1 1 0-12zM8 4a4 4 0 1 1 0 8z",
  cross: "M3.5 1.5L8 6l4.5-4.5l2 2L10 8l4.5 4.5l-2 2L8 10l-4.5 4.5l-2-2L6 8L1.5 3.5z",
  hourglass: "M2.5 1h11L9 8l4.5 7h-11L7 8z",
  arrow: "M3 1.5L14.5 8L3 14.5z",
  dash: "M2 6.5h12v3H2z",
  bars: "M3 2h4v12H3zM9 2h4v12H9z",
  triangle: "M8 1l7.5 13.5H.5z",
  diamond: "M8 .5L15.5 8L8 15.5L.5 8z",
  octagon: "M5 1h6l4 4v6l-4 4H5l-4-4V5zM7 4v5h2V4zM7 10.5v2h2v-2z",
};

/** The state in words, with its shape. */
export function badge() {
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("fill-rule", "evenodd");
  const drawing = document.createElementNS(SVG, "svg");
  drawing.setAttribute("viewBox", "0 0 16 16");
  drawing.setAttribute("aria-hidden", "true");
  drawing.append(path);
  const word = document.createElement("span");
  const element = document.createElement("span");
  element.append(drawing, word);
  return {
    element,
    update(lane) {
      const { shape, tone, word: said } = stateOf(lane);
      element.className = `badge ${tone}`;
      path.setAttribute("d", PATHS[shape]);
      word.textContent = said;
    },
  };
}

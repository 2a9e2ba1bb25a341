// The backlog as a chart of the last quarter of a minute: an SVG path redrawn for each frame, so that it glides.
const WINDOW_MS = 15_000;
const KEEP_MS = 60_000;
const MARGIN = { top: 12, right: 12, bottom: 26, left: 52 };
const SVG = "http://www.w3.org/2000/svg";
const number = new Intl.NumberFormat("en");
const still = matchMedia("(prefers-reduced-motion: reduce)");

const figure = document.querySelector(".chart");
const svg = figure.querySelector("svg");
let samples = [];      // {at, backlog}: milliseconds on the server's clock, invocations
let clock = null;      // the server's clock minus ours
let top = 4;           // what the vertical axis reaches to: rises with the data at once, falls smoothly

function part(name, attributes, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  svg.append(element);
  return element;
}

// The least of 1, 2, 5, 10, 20, ... of which five reach over the value.
function step(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value / 5, 1)));
  return [1, 2, 5, 10].map((digit) => digit * power).find((size) => size * 5 >= value);
}

function draw() {
  const { width, height } = svg.getBoundingClientRect();
  const inner = { width: width - MARGIN.left - MARGIN.right, height: height - MARGIN.top - MARGIN.bottom };
  const end = performance.now() + clock;
  const x = (at) => MARGIN.left + inner.width * (1 - (end - at) / WINDOW_MS);
  const y = (backlog) => MARGIN.top + inner.height * (1 - backlog / top);
  const first = samples.findIndex(({ at }) => at >= end - WINDOW_MS);
  const seen = first < 0 ? [] : samples.slice(Math.max(first - 1, 0));
  const peak = seen.reduce((most, { backlog }) => Math.max(most, backlog), 0);
  const tick = step(Math.max(peak, 4));
  const goal = Math.ceil(Math.max(peak, 4) / tick) * tick;
  top = still.matches || top < goal * 1.01 ? goal : top + (goal - top) * 0.15;

  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.replaceChildren();
  for (let value = 0; value <= top; value += tick) {
    part("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(value), y2: y(value) });
    part("text", { x: MARGIN.left - 10, y: y(value) + 4, "text-anchor": "end" }, number.format(value));
  }
  for (let ago = 0; ago <= WINDOW_MS; ago += 5_000) {
    const label = ago ? `−${ago / 1000} s` : "now";
    part("text", { x: x(end - ago), y: height - 4, "text-anchor": ago ? "middle" : "end" }, label);
  }
  if (!seen.length) return;
  const points = seen.map(({ at, backlog }) => [Math.max(x(at), MARGIN.left), y(backlog)]);
  points.push([x(end), points.at(-1)[1]]);
  const line = points.map((point) => point.map((n) => n.toFixed(1)).join(",")).join(" L");
  part("path", { class: "area", d: `M${points[0][0]},${y(0)} L${line} L${x(end)},${y(0)} Z` });
  part("path", { class: "line", d: `M${line}` });
  part("circle", { class: "now", cx: x(end), cy: points.at(-1)[1], r: 4 });
}

function show(name, text) {
  const element = document.querySelector(`[data-show=${name}]`);
  if (element) element.textContent = text;
}

// How long the newest time above zero lasted.
function drained() {
  const last = samples.findLastIndex(({ backlog }) => backlog > 0);
  if (last < 0 || last === samples.length - 1) return "–";
  const before = samples.slice(0, last).findLastIndex(({ backlog }) => backlog === 0);
  return `${((samples[last + 1].at - samples[before + 1].at) / 1000).toFixed(1)} s`;
}

function take({ now, samples: fresh }) {
  const known = samples.at(-1)?.at ?? 0;  // a stream that was interrupted begins again with everything
  samples = [...samples, ...fresh.filter(({ at }) => at > known)].filter(({ at }) => at >= now - KEEP_MS);
  const latest = samples.at(-1);
  if (!latest) return;
  const offset = now - performance.now();
  clock = clock === null ? offset : Math.max(clock, offset);  // the event that travelled least is the best clock
  show("now", number.format(latest.backlog));
  show("peak", number.format(Math.max(...samples.map(({ backlog }) => backlog))));
  show("drained", drained());
  if (still.matches) draw();
}

function glide() {
  if (clock !== null && !still.matches) draw();
  requestAnimationFrame(glide);
}

new EventSource(figure.dataset.source).addEventListener("samples", ({ data }) => take(JSON.parse(data)));
glide();

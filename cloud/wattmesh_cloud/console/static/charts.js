// Charts by uPlot, in the page's colours, as wide as their place; each says in words what it shows.
import { h, number, timeZone } from "./core.js";

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const zoned = (seconds) => uPlot.tzDate(new Date(seconds * 1e3), timeZone());
const all = new Set();
addEventListener("wm-theme", () => all.forEach((one) => one.rebuild()));

const withAlpha = (hex, alpha) => {
  const full = hex.length === 4 ? `#${[...hex.slice(1)].map((one) => one + one).join("")}` : hex;
  return full + Math.round(alpha * 255).toString(16).padStart(2, "0");
};

/**
 * A chart. `series` are {label, colour (a CSS variable), digits, unit, dash, width, fill, points, step, scale, show}; the x axis is
 * time in seconds unless `x` says {label, unit}. `bands` are {series: [upper, lower], colour}, by number from 1.
 */
export function chart({ label, series, height = 240, bands = [], x = null, scales = {}, unit = "", legend = true, stack = null, marks = () => [], second = null }) {
  const place = h("div", { class: "chart", role: "img", "aria-label": label });
  let data = [[], ...series.map(() => [])];
  let plot = null;
  const options = (width) => {
    const ink = colour("--soft");
    const line = colour("--line");
    const axis = { stroke: ink, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 }, font: "12px system-ui, sans-serif", labelFont: "12px system-ui, sans-serif" };
    return {
      width, height, tzDate: zoned, legend: { show: legend, live: true }, cursor: { drag: { x: !x, y: false }, points: { size: 6 } },
      scales: { x: { time: !x }, ...scales },
      axes: [
        x ? { ...axis, label: x.label, labelSize: 18, size: 42 } : { ...axis, values: timeLabels, space: 70 },
        { ...axis, size: 58, label: unit, labelSize: unit ? 16 : 0, values: (_, ticks) => ticks.map((one) => shortNumber(one)) },
        ...(second ? [{ ...axis, side: 1, scale: second.scale, size: 50, label: second.unit, labelSize: 16, grid: { show: false }, values: (_, ticks) => ticks.map(shortNumber) }] : []),
      ],
      series: [
        x ? { label: x.label, value: (_, one) => (one == null ? "–" : number(one, x.digits ?? 0, x.unit)) } : { label: "Time", value: (_, one) => (one == null ? "–" : stamp(one)) },
        ...series.map((one) => ({
          label: one.label, scale: one.scale || "y", stroke: colour(one.colour), width: one.width ?? 2, dash: one.dash, spanGaps: false,
          fill: one.fill ? withAlpha(colour(one.colour), one.fill) : undefined, points: { show: one.points ?? false, size: 5 },
          paths: one.step ? uPlot.paths.stepped({ align: 1 }) : one.bars ? uPlot.paths.bars({ size: [0.8, 40] }) : undefined,
          show: one.show ?? true, value: (_, value) => (value == null ? "–" : number(value, one.digits ?? 2, one.unit ?? unit)),
        })),
      ],
      bands: bands.map((one) => ({ series: one.series, fill: withAlpha(colour(one.colour), one.alpha ?? 0.16) })),
      hooks: { draw: [(self) => drawMarks(self, marks())] },
    };
  };
  const build = () => {
    const width = Math.max(200, Math.floor(place.clientWidth));
    plot?.destroy();
    plot = new uPlot(options(width), data, place);
    for (const index of quiet) place.querySelectorAll(".u-legend .u-series")[index]?.setAttribute("hidden", "");
  };
  const observer = new ResizeObserver(() => {
    const width = Math.floor(place.clientWidth);
    if (!plot) {
      if (width) build();
    } else if (width && width !== plot.width) plot.setSize({ width, height });
  });
  observer.observe(place);
  const quiet = series.map((one, index) => (one.quiet ? index + 1 : 0)).filter(Boolean);
  const made = {
    element: place,
    rebuild: () => plot && build(),
    set(columns) {
      data = columns;
      if (plot) plot.setData(columns);
      else if (place.clientWidth) build();
    },
    describe: (text) => place.setAttribute("aria-label", `${label}. ${text}`),
    get plot() { return plot; },
  };
  all.add(made);
  return made;
}

function drawMarks(self, marks) {
  const { ctx } = self;
  for (const mark of marks) {
    const at = Math.round(mark.x !== undefined ? self.valToPos(mark.x, "x", true) : self.valToPos(mark.y, mark.scale || "y", true));
    const { left, top, width, height } = self.bbox;
    if (mark.x !== undefined ? at < left || at > left + width : at < top || at > top + height) continue;
    ctx.save();
    ctx.strokeStyle = colour(mark.colour || "--control");
    ctx.lineWidth = devicePixelRatio * 1.5;
    ctx.setLineDash([6 * devicePixelRatio, 4 * devicePixelRatio]);
    ctx.beginPath();
    if (mark.x !== undefined) { ctx.moveTo(at, top); ctx.lineTo(at, top + height); } else { ctx.moveTo(left, at); ctx.lineTo(left + width, at); }
    ctx.stroke();
    ctx.setLineDash([]);
    if (mark.text) {
      ctx.fillStyle = colour("--soft");
      ctx.font = `${12 * devicePixelRatio}px system-ui, sans-serif`;
      ctx.textAlign = "left";
      ctx.fillText(mark.text, mark.x !== undefined ? at + 5 * devicePixelRatio : left + 6 * devicePixelRatio, mark.x !== undefined ? top + (13 + 15 * (mark.row || 0)) * devicePixelRatio : at - 5 * devicePixelRatio);
    }
    ctx.restore();
  }
}

const shortNumber = (value) => (value === null ? "" : Number(value.toPrecision(7)).toLocaleString("en-GB", { maximumFractionDigits: 4 }).replace("-", "−"));

const formats = {};
const fmt = (name, options) => (formats[name] ||= new Intl.DateTimeFormat("en-GB", { timeZone: timeZone(), hourCycle: "h23", ...options }));
const stamp = (seconds) => fmt("stamp", { weekday: "short", hour: "2-digit", minute: "2-digit", second: "2-digit" }).format(seconds * 1e3);

/** Hours and minutes; the day where it begins; seconds where the axis is short. */
function timeLabels(_, ticks, _axis, _space, step) {
  let last = null;
  return ticks.map((tick) => {
    const date = fmt("day", { weekday: "short", day: "numeric" }).format(tick * 1e3);
    const first = last !== null && date !== last;
    last = date;
    if (step >= 86400) return fmt("date", { day: "numeric", month: "short" }).format(tick * 1e3);
    if (first) return date;
    return step < 60 ? fmt("seconds", { hour: "2-digit", minute: "2-digit", second: "2-digit" }).format(tick * 1e3) : fmt("minute", { hour: "2-digit", minute: "2-digit" }).format(tick * 1e3);
  });
}

// The grid's frequency as it is measured, events with their traces, and what the sites did about them.
import { api, boot, card, empty, fullMoment, h, head, keep, known, number, pill, power, problem, replace, segments, setText, table, tiles, when } from "../core.js";
import { chart } from "../charts.js";

const WINDOW_S = 60;
const COLOURS = ["--c-grid", "--c-pv", "--c-battery", "--c-load", "--c-price"];
const WORDS = { under_frequency: "under frequency", over_frequency: "over frequency", rocof: "fast change", under_voltage: "under voltage", over_voltage: "over voltage", invalid: "not measurable", phase_step: "phase step", islanding: "islanding", trip: "trip" };

export default async function (main, context) {
  const numbers = tiles({ now: "Frequency now", rocof: "Rate of change", low: "Lowest in a minute", high: "Highest in a minute", rate: "Samples a second" });
  const rings = new Map();
  const place = h("div", {});
  const waiting = h("p", { class: "small soft" }, "Asking the gateways for their measurements …");
  const trace = h("div", {}, empty("Choose an event", "Its trace is asked of the gateway that measured it."));
  const events = table([
    { title: "Time", show: (row) => when(row.start_ns, fullMoment), sort: (row) => row.start_ns },
    { title: "Site", show: (row) => h("span", { class: "nowrap" }, row.site_id), sort: (row) => row.site_id },
    { title: "Event", show: (row) => WORDS[row.kind] || row.kind },
    { title: "Extreme", right: true, show: (row) => number(row.extreme_frequency_hz, 3, "Hz"), sort: (row) => row.extreme_frequency_hz ?? 0 },
    { title: "ROCOF", right: true, show: (row) => number(row.extreme_rocof_hz_per_s, 2, "Hz/s") },
    { title: "Response", right: true, show: (row) => (row.response_w ? power(row.response_w) : "watched"), sort: (row) => Math.abs(row.response_w) },
    { title: "Detected → written", right: true, show: (row) => (known(row.detection_to_write_ns) ? number(row.detection_to_write_ns / 1e6, 2, "ms") : "–") },
    { title: "Lasted", right: true, show: (row) => (row.end_ns ? number((row.end_ns - row.start_ns) / 1e9, 1, "s") : pill("under way", "warn")) },
  ], { caption: "Frequency events", none: ["No event", "The frequency has stayed inside its band."], onpick: (row) => showTrace(row) });
  const list = h("div", {});
  const evidence = h("div", {});
  main.append(head("Frequency"), numbers.element,
    card("Live", { note: `the last minute, as the sites measure it; ${boot.nominal_hz} Hz nominal` }, place, waiting),
    h("div", { class: "cols" }, card("Events", { span: 7, note: "choose one for its trace" }, list), card("Trace", { span: 5 }, trace)),
    card("Response evidence", { note: "what each site's reflex has shown" }, evidence));

  let drawing = null;
  let shown = "";
  function build() {
    const sites = [...rings.keys()].sort();
    if (drawing && shown === sites.join()) return;
    shown = sites.join();
    drawing = chart({
      label: "Frequency of the last minute", unit: "Hz", height: 290, scales: { y: { range: (_, low, high) => band(low, high) } },
      series: sites.map((site, index) => ({ label: site, colour: COLOURS[index % COLOURS.length], digits: 4, unit: "Hz", width: 1.5 })),
      marks: () => [{ y: boot.nominal_hz, text: "nominal" }],
    });
    replace(place, drawing.element);
  }
  const band = (low, high) => {
    if (!known(low)) return [boot.nominal_hz - 0.05, boot.nominal_hz + 0.05];
    const middle = boot.nominal_hz;
    const reach = Math.max(0.03, Math.abs(low - middle), Math.abs(high - middle)) * 1.15;
    return [middle - reach, middle + reach];
  };
  let arrived = [];
  context.on("frequency", "frequency", (data) => {
    let count = 0;
    for (const [site, rows] of Object.entries(data)) {
      if (!rings.has(site)) rings.set(site, []);
      const ring = rings.get(site);
      ring.push(...rows);
      if (site === [...rings.keys()].sort()[0]) count = rows.length;
      const oldest = ring[ring.length - 1][0] - WINDOW_S * 1000;
      while (ring.length && ring[0][0] < oldest) ring.shift();
    }
    const now = Date.now();
    if (count) arrived.push([now, count]);
    arrived = arrived.filter(([at]) => now - at < 5000);
    waiting.hidden = true;
    draw();
  });
  function draw() {
    build();
    // One axis for all sites: steps of 50 ms, the nearest sample of each.
    const sites = [...rings.keys()].sort();
    const end = Math.max(...sites.map((site) => rings.get(site).at(-1)[0]));
    const steps = Array.from({ length: WINDOW_S * 20 + 1 }, (_, index) => Math.round((end - WINDOW_S * 1000) / 50) * 50 + index * 50);
    const columns = sites.map((site) => {
      const by = new Map(rings.get(site).map((row) => [Math.round(row[0] / 50), row[1]]));
      return steps.map((step) => by.get(step / 50) ?? by.get(step / 50 - 1) ?? null);
    });
    drawing.set([steps.map((step) => step / 1000), ...columns]);
    const newest = sites.map((site) => rings.get(site).at(-1)).filter((row) => known(row[1]));
    const all = sites.flatMap((site) => rings.get(site).map((row) => row[1])).filter(known);
    const mean = newest.length ? newest.reduce((sum, row) => sum + row[1], 0) / newest.length : null;
    const slope = newest.map((row) => row[2]).filter(known);
    numbers.set("now", number(mean, 4, "Hz"), known(mean) ? `${number((mean - boot.nominal_hz) * 1000, 1)} mHz from nominal` : "not measurable");
    numbers.set("rocof", slope.length ? number(slope.reduce((a, b) => a + b, 0) / slope.length, 3, "Hz/s") : "–");
    numbers.set("low", all.length ? number(Math.min(...all), 4, "Hz") : "–");
    numbers.set("high", all.length ? number(Math.max(...all), 4, "Hz") : "–");
    const span = arrived.length > 1 ? (arrived.at(-1)[0] - arrived[0][0]) / 1000 : 0;
    numbers.set("rate", span ? number(arrived.slice(1).reduce((sum, [, count]) => sum + count, 0) / span, 0) : "–", `of each of ${sites.length} sites`);
    drawing.describe(`Now ${number(mean, 3, "Hz")}`);
  }
  setTimeout(() => {
    if (!rings.size) setText(waiting, "No gateway sends its frequency yet. Gateways with a frequency source do so within seconds of connecting; see the site file, section frequency.");
  }, 12000);

  keep(list, async () => {
    const found = await api.get("frequency/events", { limit: 200 });
    events.set(found);
    replace(evidence, proof(found));
    return events.element.isConnected ? null : events.element;
  }, 5);

  let picked = null;
  async function showTrace(row, tries = 0) {
    picked = row.id;
    if (!tries) replace(trace, h("div", { class: "skeleton" }));
    try {
      const found = await api.get(`sites/${encodeURIComponent(row.site_id)}/frequency/${encodeURIComponent(row.id)}/trace`);
      if (!found.times_ms.length) {
        const young = tries < 6;
        replace(trace, young ? empty("The trace is being written", "A gateway keeps it two seconds after the event; it appears by itself.") : empty("No trace under this event", "An event that follows another closely stands in the other one's trace; the last 200 traces are kept."));
        if (young) setTimeout(() => picked === row.id && showTrace(row, tries + 1), 3000);
        return;
      }
      const marks = () => [{ x: 0, text: "detected" }, known(found.write_ms) && { x: found.write_ms, text: "written", colour: "--c-battery", row: 1 }, known(found.end_ms) && { x: found.end_ms, text: "over" }].filter(Boolean);
      const x = { label: "after the detection", unit: "ms", digits: 0 };
      const top = chart({ label: `Frequency around ${row.id}`, unit: "Hz", height: 190, x, marks, series: [{ label: "Frequency", colour: "--c-grid", digits: 4, unit: "Hz" }] });
      const below = chart({ label: "Setpoint", unit: "kW", height: 160, x, marks, series: [{ label: "Setpoint", colour: "--c-battery", digits: 2, unit: "kW", step: true }] });
      replace(trace, h("p", { class: "small soft" }, `${WORDS[row.kind] || row.kind} at ${row.site_id}, `, when(row.start_ns, fullMoment), known(row.detection_to_write_ns) && `; ${number(row.detection_to_write_ns / 1e6, 2, "ms")} from detection to the setpoint's bytes`), top.element, below.element);
      top.set([found.times_ms, found.frequency_hz]);
      below.set([found.times_ms, found.setpoint_w.map((one) => (known(one) ? one / 1000 : null))]);
    } catch (error) {
      replace(trace, problem(error.message, () => showTrace(row)));
    }
  }
}

function proof(events) {
  const by = new Map();
  for (const one of events) {
    if (!by.has(one.site_id)) by.set(one.site_id, []);
    by.get(one.site_id).push(one);
  }
  if (!by.size) return empty("Nothing to show yet", "Evidence comes with the first event; the hardware lab can make one.");
  const rows = [...by.entries()].map(([site, found]) => {
    const took = found.map((one) => one.detection_to_write_ns).filter(known).map((one) => one / 1e6).sort((a, b) => a - b);
    return { id: site, events: found.length, answered: took.length, median: took.length ? took[Math.floor(took.length / 2)] : null, worst: took.at(-1) ?? null, most: Math.max(...found.map((one) => Math.abs(one.response_w))) };
  });
  const made = table([
    { name: "id", title: "Site" }, { name: "events", title: "Events", right: true }, { name: "answered", title: "Answered", right: true },
    { title: "Detected → written, median", right: true, show: (row) => number(row.median, 2, "ms") }, { title: "longest", right: true, show: (row) => number(row.worst, 2, "ms") },
    { title: "Largest response", right: true, show: (row) => power(row.most) },
  ], { caption: "Response evidence" });
  made.set(rows);
  return made.element;
}

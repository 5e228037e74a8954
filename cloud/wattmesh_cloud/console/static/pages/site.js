// One site: what flows, what was, what is expected, and why this power.
import { ApiError, api, boot, card, command, day, download, empty, energy, flowText, fullMoment, h, head, keep, known, me, may, moment, number, pill, power, price, problem, replace, seconds, segments, setText, statePill, svg, table, tiles, time, toast, when } from "../core.js";
import { chart } from "../charts.js";

const FLOWS = [["grid_w", "Grid", "--c-grid"], ["pv_w", "PV", "--c-pv"], ["battery_w", "Battery", "--c-battery"], ["load_w", "Load", "--c-load"]];

export default async function (main, context) {
  const id = boot.arguments.site_id;
  const path = `sites/${encodeURIComponent(id)}`;
  let site;
  try {
    site = await api.get(path);
  } catch (error) {
    if (!(error instanceof ApiError) || error.status !== 404) throw error;
    document.title = "No such site · WattMesh";
    main.append(card("There is no such site", {}, h("p", {}, error.message), h("a", { class: "button", href: "/" }, "To the fleet")));
    return;
  }
  document.title = `${id} · WattMesh`;
  const state = h("span", {});
  const what = h("span", { class: "soft" });
  main.append(
    head(id, { crumb: h("a", { href: "/" }, "Fleet"), tools: [what, state] }));
  const numbers = tiles({ soc: "State of charge", frequency: "Frequency", plan: "Follows", limits: "Connection limits", age: "Newest reading" });
  const flow = powerFlow();
  const why = h("div", {});
  const history = historyCard(path, id);
  const forecast = h("div", {});
  const plan = h("div", {});
  const alarms = h("div", {});
  const decisions = h("div", {});
  const assets = h("div", {});
  main.append(numbers.element,
    h("div", { class: "cols" },
      card("Power now", { span: 5, note: "arrows show which way it flows" }, flow.element),
      card("Why this power?", { span: 7, note: "the arbiter's last word on each asset" }, why)),
    history.element,
    h("div", { class: "cols" },
      card("Forecast and plan", { span: 7, note: "forecasts with their range from the lowest to the highest quantile; what the planner wants is dashed" }, forecast),
      card("Alarms that stand", { span: 5 }, alarms)),
    card("Plan: prices and commitments", { note: "bought is positive" }, plan),
    card("Decisions", { note: "newest first", tools: [download("CSV", `${path}/decisions`, { format: "csv", limit: 1000 }), download("Parquet", `${path}/decisions`, { format: "parquet", limit: 1000 })] }, decisions),
    card("Assets", {}, assets));

  let newest = site.time_ns;
  const show = (one) => {
    newest = one.time_ns ?? newest;
    replace(state, statePill(one.state));
    setText(what, one.problem || "");
    const { flows } = one;
    numbers.set("soc", number(flows.soc_percent, 0, "%"));
    numbers.set("frequency", number(flows.frequency_hz, 3, "Hz"));
    numbers.set("plan", one.plan_source || "–");
    numbers.set("age", one.time_ns ? seconds(one.time_ns) : "–", one.online ? "connected" : "away");
    flow.set(flows, one.online);
    history.add(one);
  };
  numbers.set("limits", known(site.import_limit_w) ? power(site.import_limit_w) : "–", known(site.export_limit_w) ? `export ${power(site.export_limit_w)}` : "");
  show(site);
  context.on(`site:${id}`, "site", show);

  keep(assets, async () => {
    const found = await api.get(path);
    numbers.set("limits", known(found.import_limit_w) ? power(found.import_limit_w) : "–", known(found.export_limit_w) ? `export ${power(found.export_limit_w)}` : "");
    if (!found.assets.length) return empty("No asset is known", "The gateway tells them when it connects.");
    return h("div", { class: "cols" }, found.assets.map((one) => assetBlock(one)));
  }, 10);
  keep(alarms, async () => alarmList(path, (await api.get("alarms")).filter((one) => one.site_id === id)), 5);
  whyAndDecisions(path, why, decisions);
  forecastBlock(path, forecast, () => newest);
  planBlock(path, plan);
}

// -- power flow

function powerFlow() {
  const places = { pv_w: [250, 52], grid_w: [60, 175], load_w: [440, 175], battery_w: [250, 298] };
  const names = Object.fromEntries(FLOWS.map(([key, name]) => [key, name]));
  const colours = Object.fromEntries(FLOWS.map(([key, , colour]) => [key, `var(${colour})`]));
  const streams = {};
  const values = {};
  const notes = {};
  const wires = [];
  const nodes = [];
  for (const [key, [x, y]] of Object.entries(places)) {
    const line = `M ${x + (250 - x) * 0.27} ${y + (175 - y) * 0.38} L ${250 + (x - 250) * 0.14} ${175 + (y - 175) * 0.2}`;
    wires.push(svg("path", { class: "wire", d: line }));
    streams[key] = svg("path", { class: "stream", d: line, stroke: colours[key] });
    values[key] = svg("text", { class: "value", x, y: y + 3 }, "–");
    notes[key] = svg("text", { class: "soft", x, y: y + 20 }, "");
    nodes.push(svg("g", { class: "node" }, svg("circle", { cx: x, cy: y, r: 46, stroke: colours[key] }), svg("text", { x, y: y - 15 }, names[key]), values[key], notes[key]));
  }
  const element = svg("svg", { class: "flow", viewBox: "0 0 500 352", role: "img", "aria-label": "Power flow" },
    ...wires, ...Object.values(streams), svg("circle", { cx: 250, cy: 175, r: 11, fill: "var(--control)" }), ...nodes);
  return {
    element,
    set(flows, online) {
      const told = [];
      for (const [key] of FLOWS) {
        const watts = flows[key];
        const on = known(watts) && Math.abs(watts) >= 10 && online;
        streams[key].classList.toggle("on", on);
        // A path goes from the component to the middle: what flows out of a component (negative) follows it; import does, too.
        const inward = key === "grid_w" ? watts > 0 : watts < 0;
        streams[key].classList.toggle("back", on && !inward);
        setText(values[key], known(watts) ? power(Math.abs(watts)) : "–");
        setText(notes[key], !known(watts) || Math.abs(watts) < 1 ? "" : key === "grid_w" ? (watts > 0 ? "import" : "export") : key === "battery_w" ? (watts > 0 ? "charging" : "discharging") : "");
        told.push(`${names[key]} ${flowText(key, key === "pv_w" && known(watts) ? -watts : watts)}`);
      }
      element.setAttribute("aria-label", `Power flow: ${told.join(", ")}`);
    },
  };
}

// -- history

const SPANS = [["live", "Live"], ["6h", "6 h"], ["24h", "24 h"], ["7d", "7 d"]];

function historyCard(path, id) {
  let span = "live";
  let rows = [];
  const drawing = chart({
    label: `Power of ${id}`, unit: "kW", height: 260, second: { scale: "soc", unit: "%" }, scales: { soc: { range: [0, 100] } },
    series: [...FLOWS.map(([, name, colour]) => ({ label: name, colour, unit: "kW", digits: 2 })), { label: "Charge", colour: "--c-soc", unit: "%", digits: 0, scale: "soc", dash: [5, 4], width: 1.5 }],
  });
  const message = h("div", {});
  const csv = h("a", { class: "button small", download: "" }, "CSV");
  const parquet = h("a", { class: "button small", download: "" }, "Parquet");
  const draw = () => {
    const kilo = (value) => (known(value) ? value / 1000 : null);
    drawing.set([rows.map((row) => row.time_ns / 1e9), ...FLOWS.map(([key]) => rows.map((row) => kilo(row[key]))), rows.map((row) => row.soc_percent)]);
    replace(message, rows.length ? null : empty("No readings in this stretch", "They come as soon as the gateway sends some."));
    const last = rows[rows.length - 1];
    if (last) drawing.describe(`Newest: grid ${flowText("grid_w", last.grid_w)}, load ${power(last.load_w)}, at ${time(last.time_ns)}`);
  };
  const load = async () => {
    if (span === "live") rows = (await api.get(`${path}/flows`)).slice(-720);
    else {
      const detail = await api.get(path);
      const end = detail.time_ns || Date.now() * 1e6;
      const hours = { "6h": 6, "24h": 24, "7d": 168 }[span];
      rows = await meansOf(path, detail, end - hours * 3600e9, end, { "6h": 60, "24h": 300, "7d": 1800 }[span]);
      const points = pointsOf(detail);
      const query = { start_ns: end - hours * 3600e9, end_ns: end, column: points.all.slice(0, 20), step_s: 60 };
      for (const [link, format] of [[csv, "csv"], [parquet, "parquet"]]) {
        const url = new URL(`/api/v1/${path}/readings`, location.origin);
        for (const [name, value] of Object.entries({ ...query, format })) for (const one of [value].flat()) url.searchParams.append(name, one);
        link.href = url.pathname + url.search;
      }
    }
    csv.hidden = parquet.hidden = span === "live";
    draw();
  };
  const run = keep(message, load, 60);
  return {
    element: card("History", { tools: [segments("Stretch of time", SPANS, span, (value) => { span = value; run(); }), csv, parquet] }, drawing.element, message),
    add(one) {
      if (span !== "live" || !one.time_ns || (rows.length && one.time_ns <= rows[rows.length - 1].time_ns)) return;
      rows = [...rows.slice(-719), { time_ns: one.time_ns, ...one.flows }];
      draw();
    },
  };
}

function pointsOf(detail) {
  const has = (asset, point) => point in asset.points;
  const meter = detail.assets.find((one) => has(one, "energy_import_wh"));
  const inverters = detail.assets.filter((one) => has(one, "energy_produced_wh"));
  const batteries = detail.assets.filter((one) => has(one, "soc_percent"));
  const power = (one) => `${one.id}.active_power_w`;
  const named = { grid: meter ? [power(meter)] : [], pv: inverters.map(power), battery: batteries.map(power), soc: batteries.map((one) => `${one.id}.soc_percent`) };
  return { ...named, all: [...named.grid, ...named.pv, ...named.battery, ...named.soc] };
}

async function meansOf(path, detail, start, end, step) {
  const points = pointsOf(detail);
  if (!points.all.length) return [];
  const found = await api.get(`${path}/readings`, { column: points.all.slice(0, 20), start_ns: Math.round(start), end_ns: Math.round(end), step_s: step });
  const by = new Map();
  found.forEach((one) => one.times_ns.forEach((at, index) => {
    if (!by.has(at)) by.set(at, { time_ns: at });
    by.get(at)[one.column] = one.values[index];
  }));
  const sum = (row, names) => (names.length && names.every((name) => known(row[name])) ? names.reduce((total, name) => total + row[name], 0) : null);
  return [...by.values()].sort((a, b) => a.time_ns - b.time_ns).map((row) => {
    const grid_w = sum(row, points.grid);
    const pv_w = points.pv.length ? sum(row, points.pv) : 0;
    const battery_w = points.battery.length ? sum(row, points.battery) : 0;
    const soc = points.soc.map((name) => row[name]).filter(known);
    return { time_ns: row.time_ns, grid_w, pv_w, battery_w, load_w: known(grid_w) && known(pv_w) && known(battery_w) ? grid_w - pv_w - battery_w : null, soc_percent: soc.length ? soc.reduce((a, b) => a + b, 0) / soc.length : null };
  });
}

// -- why

/** A decision in words. */
export function inWords(one) {
  const parts = [];
  if (!known(one.target_w)) parts.push("Nobody asked for a power; nothing is written.");
  else parts.push(h("span", { class: "strong num" }, flowText(/battery/.test(one.asset_id) ? "battery_w" : "", one.target_w) === "0 W" ? "0 W" : power(one.target_w)), ` because of ${one.decided_by}. `);
  if (one.limited_by) parts.push(`${known(one.requested_w) ? `${power(one.requested_w)} was asked for; ` : ""}limited by ${one.limited_by}. `);
  if (known(one.remaining_w) && Math.abs(one.remaining_w) >= 1) parts.push(`${power(one.remaining_w)} could not be met. `);
  if (one.conflicts?.length) parts.push(`Contradictions: ${one.conflicts.join("; ")}.`);
  return parts;
}

function whyAndDecisions(path, why, decisions) {
  const list = table([
    { title: "Time", show: (row) => when(row.time_ns, fullMoment) },
    { name: "asset_id", title: "Asset" },
    { title: "Power", right: true, show: (row) => power(row.target_w) },
    { name: "decided_by", title: "Decided by" },
    { title: "Limited by", show: (row) => row.limited_by || "–" },
    { title: "Asked for", right: true, show: (row) => power(row.requested_w) },
  ], { caption: "Decisions", none: ["No decision yet", "They come with the gateway's first records."] });
  keep(decisions, async () => {
    const page = await api.get(`${path}/decisions`, { limit: 60 });
    list.set(page.rows.map((row, index) => ({ ...row, id: index })));
    const newest = new Map();
    for (const row of page.rows) if (!newest.has(row.asset_id)) newest.set(row.asset_id, row);
    replace(why, newest.size ? h("ul", { class: "why" }, [...newest.values()].map((one) => h("li", {},
      h("div", {}, h("span", { class: "strong" }, one.asset_id), h("span", { class: "soft small" }, " at ", when(one.time_ns, fullMoment))), h("div", {}, inWords(one)))))
      : empty("No decision has come in yet", "The gateway sends them once its first records are stored."));
    return list.element.isConnected ? null : list.element;
  }, 5);
}

// -- expectations

function forecastBlock(path, place, newest) {
  const fan = chart({
    label: "Forecast of load and production, and the plan", unit: "kW", height: 250, second: { scale: "stored", unit: "kWh stored" },
    series: [
      { label: "Load high", colour: "--c-load", width: 0.5, digits: 2, quiet: true }, { label: "Load low", colour: "--c-load", width: 0.5, digits: 2, quiet: true }, { label: "Load", colour: "--c-load", digits: 2 },
      { label: "PV high", colour: "--c-pv", width: 0.5, digits: 2, quiet: true }, { label: "PV low", colour: "--c-pv", width: 0.5, digits: 2, quiet: true }, { label: "PV", colour: "--c-pv", digits: 2 },
      { label: "Planned grid", colour: "--c-grid", dash: [5, 4], step: true, digits: 2 }, { label: "Planned battery", colour: "--c-battery", dash: [5, 4], step: true, digits: 2 },
      { label: "Planned charge", colour: "--c-soc", dash: [2, 3], width: 1.5, digits: 1, unit: "kWh", scale: "stored" },
    ],
    bands: [{ series: [1, 2], colour: "--c-load" }, { series: [4, 5], colour: "--c-pv" }],
  });
  const note = h("p", { class: "small soft" });
  keep(place, async () => {
    const [found, { taken, unplanned }] = await Promise.all([api.get(`${path}/forecasts`), api.get(`${path}/plan`, { slots: 1 })]);
    const load = found.find((one) => one.quantity === "load_wh");
    const pv = found.find((one) => one.quantity === "pv_wh");
    if (!load || !pv) return empty("No forecast yet", "The forecasting agent needs a day of metered quarter hours of this site.");
    const count = Math.min(192, load.values.length);
    const times = Array.from({ length: count }, (_, index) => load.start_ns / 1e9 + index * load.slot_s);
    const columns = [load, pv].flatMap((one) => {
      const at = (level) => Array.from({ length: count }, (_, index) => (one.values[index] ? (one.values[index][level] * 3.6) / one.slot_s : null));
      return [at(one.levels.length - 1), at(0), at(Math.floor(one.levels.length / 2))];
    });
    const planned = (name, back = 0) => times.map((at) => {
      const value = taken?.[name][Math.floor((at - taken.start_ns / 1e9) / taken.slot_s) - back];
      return known(value) ? value / 1000 : null;
    });
    fan.set([times, ...columns, planned("grid_w"), planned("battery_w"), planned("stored_wh", 1)]);
    const over = taken && known(newest()) && taken.expires_ns < newest();
    const told = taken ? `Plan of ${moment(taken.issued_ns)}, ${over ? "expired at" : "holds until"} ${moment(taken.expires_ns)}${taken.reasons.length ? `: ${taken.reasons.join("; ")}` : ""}.` : "The cloud has no plan for this site; its gateway plans by itself.";
    setText(note, `Forecast of ${moment(load.issued_ns)} by ${load.model}; range ${number(load.levels[0] * 100)} to ${number(load.levels.at(-1) * 100)} %. ${told}${unplanned ? ` No newer plan: ${unplanned}.` : ""}`);
    fan.describe(told);
    return fan.element.isConnected ? null : h("div", {}, fan.element, note);
  }, 60);
}

function planBlock(path, place) {
  const prices = chart({
    label: "Prices and commitments of the coming day", unit: "ct/kWh", height: 190, second: { scale: "wh", unit: "Wh a slot" },
    series: [{ label: "Retail price", colour: "--c-price", step: true, digits: 2, unit: "ct/kWh" }, { label: "Committed", colour: "--c-battery", bars: true, digits: 0, unit: "Wh", scale: "wh", fill: 0.5 }],
  });
  keep(place, async () => {
    const found = await api.get(`${path}/plan`, { slots: 96 });
    prices.set([found.slots.map((one) => one.start_ns / 1e9), found.slots.map((one) => one.price_ticks / 100), found.slots.map((one) => one.committed_wh)]);
    const next = found.slots.find((one) => known(one.committed_wh) && one.committed_wh !== 0);
    prices.describe(next ? `Next commitment ${energy(next.committed_wh)} at ${moment(next.start_ns)}` : "No commitment in the coming day");
    return prices.element.isConnected ? null : prices.element;
  }, 30);
}

// -- alarms and assets

function alarmList(path, standing) {
  if (!standing.length) return empty("No alarm stands", "What a person should know of appears here.");
  return h("ul", { class: "why" }, standing.map((one) => h("li", {},
    h("div", {}, pill(one.severity, one.severity === "critical" ? "bad" : "warn"), " ", one.asset_id && h("span", { class: "strong" }, one.asset_id), h("span", { class: "small soft" }, " since ", when(one.raised_ns))),
    h("div", {}, one.text),
    one.acknowledged_by ? h("div", { class: "small soft" }, `seen by ${one.acknowledged_by}`)
      : may("operate") && h("button", { class: "button small", onclick: async (event) => {
        event.target.disabled = true;
        try {
          await api.post(`${path}/alarms/${encodeURIComponent(one.id)}/acknowledge`, {});
          event.target.replaceWith(h("span", { class: "small soft" }, `seen by ${me.name}`));
        } catch (error) {
          event.target.disabled = false;
          toast(error.message, { bad: true });
        }
      } }, "I look after it"))));
}

const UNITS = [["_percent", "%", 1], ["_w", "W", 0], ["_wh", "Wh", 0], ["_hz", "Hz", 3], ["_v", "V", 1], ["_a", "A", 2], ["_c", "°C", 1], ["_var", "var", 0], ["_va", "VA", 0]];
export function pointText(name, value) {
  if (!known(value)) return "no good value";
  const found = UNITS.find(([end]) => name.endsWith(end));
  return found ? number(value, found[2], found[1]) : number(value, Number.isInteger(value) ? 0 : 2);
}
export const pointName = (name) => {
  const found = UNITS.find(([end]) => name.endsWith(end));
  return (found ? name.slice(0, -found[0].length) : name).replaceAll("_", " ");
};

export function assetBlock(one) {
  const points = Object.entries(one.points).sort(([a], [b]) => a.localeCompare(b));
  return h("section", { class: "span-4" },
    h("h3", {}, one.id), h("p", { class: "small soft" }, one.kind, one.template && [", ", h("code", {}, one.template)], known(one.rated_power_w) && `, ${power(one.rated_power_w)}`, known(one.rated_energy_wh) && `, ${energy(one.rated_energy_wh)}`),
    points.length ? h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Points of ${one.id}` }, h("table", {}, h("tbody", {}, points.map(([name, value]) => h("tr", {}, h("td", {}, pointName(name)), h("td", { class: `right ${known(value) ? "" : "warn"}` }, pointText(name, value)))))))
      : empty("No value yet", "They come with the first reading."));
}

// The grid's state, demand response from the call to the payment, drills and emergencies in two steps.
import { api, boot, card, command, empty, energy, fullMoment, h, head, keep, known, may, moment, newKey, number, pill, power, price, question, replace, segments, table, tiles, time, toast, units, when } from "../core.js";
import { chart } from "../charts.js";

const STATES = { announced: "quiet", dispatched: "warn", ended: "quiet", settled: "good", cancelled: "quiet" };
const MODES = [{ value: "shortage", label: "Shortage: shed import" }, { value: "surplus", label: "Surplus: curtail export" }, { value: "black_start", label: "Black start" }];

export default async function (main, context) {
  const operator = may("operate", { host: true });
  const numbers = tiles({ status: "Grid", frequency: "Frequency", events: "Frequency events", exchange: "Fleet exchange", warnings: "Warnings ahead" });
  const responses = h("div", {});
  const detail = h("div", {}, empty("Choose an event", "Offers, dispatch and delivery of each site show here."));
  const emergencies = h("div", {});
  const ahead = h("div", {});
  const history = h("div", {});
  main.append(head("Grid and demand response", { tools: operator ? [
    h("button", { class: "button primary", onclick: call }, "Call an event"), h("button", { class: "button", onclick: () => emergency(true) }, "Drill"), h("button", { class: "button danger", onclick: () => emergency(false) }, "Emergency")] : [] }),
  numbers.element,
  card("Emergencies and drills", { note: "two steps: what would happen, then a typed word" }, emergencies),
  h("div", { class: "cols" }, card("Demand response", { span: 6, note: "choose an event" }, responses), card("Dispatch and delivery", { span: 6 }, detail)),
  h("div", { class: "cols" }, card("Warnings ahead", { span: 6, note: "what the forecasts put outside its limits" }, ahead), card("Changes of the grid's status", { span: 6 }, history)));

  context.on("fleet", "fleet", (data) => {
    numbers.set("status", data.grid.status, data.grid.reason);
    numbers.set("frequency", number(data.grid.frequency_hz, 3, "Hz"), `${boot.nominal_hz} Hz nominal`);
  });

  const list = table([
    { title: "Window", show: (row) => h("span", { class: "nowrap" }, `${moment(row.start_ns)}–${time(row.end_ns)}`), sort: (row) => row.start_ns },
    { title: "Asked for", right: true, show: (row) => power(row.target_w) }, { title: "Dispatched", right: true, show: (row) => power(sum(row.dispatched_w)) },
    { title: "Delivered", right: true, show: (row) => (row.state === "settled" ? energy(sum(row.delivered_wh)) : "–") },
    { title: "State", show: (row) => pill(row.state, STATES[row.state] || "quiet") },
    ...(operator ? [{ title: "", show: (row) => (["announced", "dispatched"].includes(row.state) ? h("button", { class: "button small danger", onclick: (event) => { event.stopPropagation(); stop(row); } }, "Cancel") : "") }] : []),
  ], { caption: "Demand-response events", none: ["No event", "The day's highest expected import is called by itself; an operator may call one now."], onpick: (row) => { picked = row.id; show(row); } });
  let picked = null;
  const renew = keep(responses, async () => {
    const [grid, found] = await Promise.all([api.get("grid"), api.get("grid/demand-response")]);
    numbers.set("events", number(grid.frequency_events));
    numbers.set("status", grid.status, grid.reason);
    numbers.set("frequency", number(grid.frequency_hz, 3, "Hz"), `${grid.nominal_hz} Hz nominal`);
    list.set(found);
    const again = found.find((one) => one.id === picked);
    if (again) show(again);
    return list.element.isConnected ? null : list.element;
  }, 4);

  function show(event) {
    const sites = [...new Set([...Object.keys(event.offers), ...Object.keys(event.dispatched_w), ...Object.keys(event.left_out || {})])].sort();
    const rows = table([
      { name: "id", title: "Site" }, { title: "Offered", right: true, show: (row) => power(event.offers[row.id]) }, { title: "Dispatched", right: true, show: (row) => power(event.dispatched_w[row.id]) },
      { title: "Measured", right: true, show: (row) => energy(event.measured_wh?.[row.id]) }, { title: "Paid for", right: true, show: (row) => energy(event.delivered_wh[row.id]) }, { title: "Pay", right: true, show: (row) => units(event.paid_units?.[row.id]) },
    ], { caption: "Sites of the event", none: ["No site has answered yet", "They are asked when the notice begins."] });
    rows.set(sites.map((id) => ({ id })));
    replace(detail, h("p", {}, h("span", { class: "strong" }, event.id), ` · ${event.reason} · `, `${price(event.price_ticks)} for what is delivered`, known(event.delivered_share) && ` · ${number(event.delivered_share * 100, 0)} % of what was asked`), rows.element);
  }

  async function call() {
    await command({
      kind: "grid.event", title: "Call an event", text: "Every site is asked what it can offer; the cheapest offers are dispatched, measured against a baseline and paid.",
      fields: [
        { name: "kw", label: "Less import, kW", type: "number", value: 3, min: 0.1, max: 100000, step: 0.1 }, { name: "duration_s", label: "How long", options: [{ value: "900", label: "15 min" }, { value: "1800", label: "30 min" }, { value: "3600", label: "1 h" }, { value: "7200", label: "2 h" }] },
        { name: "cents", label: "Payment, ct/kWh", type: "number", value: 30, min: 0, max: 10000, step: 0.01, hint: "It begins as soon as the notice allows." },
      ],
      build: (values) => ({ target_w: -Math.round(values.kw * 1000), duration_s: Number(values.duration_s), price_ticks: Math.round(values.cents * 100) }),
    });
    renew();
  }
  async function stop(row) {
    await command({ kind: "grid.cancel", title: "Cancel the event", text: `${row.id}: sites are told that it is over.`, build: () => ({ event_id: row.id }), danger: true });
    renew();
  }

  // -- emergencies

  let areas = [""];
  const renewEmergencies = keep(emergencies, async () => {
    const [view, found] = await Promise.all([api.get("grid/emergencies"), api.get("grid/areas")]);
    areas = found.map((one) => one.area_id);
    const whole = found.find((one) => one.area_id === "all") || found[0];
    if (whole) numbers.set("exchange", power(Math.abs(whole.grid_w)), `${whole.grid_w >= 0 ? "import" : "export"}, ${whole.known} of ${whole.sites} sites known`);
    if (!view.standing.length && !view.over.length) return empty("Nothing stands", "In an emergency, or for a drill, ask for a stage: first you see what it would do.");
    return h("ul", { class: "why" }, [...view.standing.map((one) => standing(one)), ...view.over.slice(-4).reverse().map((one) => h("li", { class: "soft" },
      `${one.drill ? "Drill" : "Emergency"} ${one.mode.replace("_", " ")}, stage ${one.stage}, `, when(one.began_ns, fullMoment), one.ended_ns && [" to ", when(one.ended_ns, time)], one.ended_why && `: ${one.ended_why}`))]);
  }, 5);

  function standing(one) {
    return h("li", {}, h("div", {}, pill(one.drill ? "drill" : "emergency", one.drill ? "warn" : "bad"), " ", h("span", { class: "strong" }, `${one.mode.replace("_", " ")}, stage ${one.stage}${one.area_id ? ` in ${one.area_id}` : ""}`), ` since ${fullMoment(one.began_ns)}: ${one.reason}`),
      h("div", { class: "small soft" }, `asked for by ${one.by}, confirmed by ${one.confirmed_by}; ends by itself at ${fullMoment(one.ends_ns)} at the latest`),
      Object.keys(one.results || {}).length > 0 && h("div", { class: "small" }, Object.entries(one.results).map(([site, answer]) => `${site}: ${answer.accepted === false ? "refused" : answer.detail || answer.state || "told"}`).join(" · ")),
      operator && h("button", { class: "button small", onclick: () => release(one) }, "Release"));
  }

  async function emergency(drill) {
    const view = await api.get("grid/emergencies");
    const stages = view.stages.map((one) => ({ value: String(one.id), label: `${one.id}: ${one.name}` }));
    const values = await question({
      title: drill ? "Start a drill" : "Declare an emergency", action: "See what it would do", danger: !drill,
      text: drill ? "Gateways answer what they would do; no power moves." : "This sheds or curtails power at people's sites. First you see what it would do; nothing is sent yet.",
      fields: [{ name: "mode", label: "What", options: MODES }, { name: "stage", label: "Stage", options: stages }, ...(areas.length > 1 ? [{ name: "area", label: "Area", options: areas.map((one) => ({ value: one, label: one || "the whole fleet" })) }] : []), { name: "reason", label: "Reason, for the log", minlength: 3, maxlength: 200 }, ...(drill ? [] : [{ name: "second", label: "Second step", options: [{ value: "me", label: "I type a word now" }, { value: "other", label: "Somebody else approves it, within 15 minutes" }] }])],
    });
    if (!values) return;
    try {
      const asked = await api.post("grid/emergencies", { mode: values.mode, stage: Number(values.stage), area: values.area ?? areas[0] ?? "", drill, reason: values.reason });
      const told = Object.entries(asked.preview).map(([site, one]) => `${site}: ${Object.entries(one).map(([name, value]) => `${name.replace(/_w$/, "").replaceAll("_", " ")} ${known(value) ? (typeof value === "number" ? power(value) : value) : "–"}`).join(", ")}`).join("; ");
      if (values.second === "other") {
        const sure = await question({ title: "Ask for approval", danger: true, action: "Ask for approval", text: `What it would do: ${told || "no site would change"}. Nothing is sent until somebody else approves it.`, fields: [] });
        if (!sure) return;
        await api.post("commands", { kind: "grid.emergency", arguments: { mode: values.mode, stage: Number(values.stage), area: values.area ?? areas[0] ?? "" }, reason: values.reason, idempotency_key: newKey() });
        toast("Nothing is sent yet: it waits for somebody else's approval on the agents' page, under Commands.");
        return;
      }
      const typed = await question({ title: `Confirm the ${drill ? "drill" : "emergency"}`, danger: !drill, action: drill ? "Start the drill" : "Do it", text: `What it would do: ${told || "no site would change"}. Type ${asked.confirm} to go on.`, fields: [{ name: "confirm", label: `Type ${asked.confirm}` }] });
      if (!typed) return;
      if (typed.confirm.trim() !== asked.confirm) { toast("The word was another one; nothing was done.", { bad: true }); return; }
      await api.post("grid/emergencies/confirm", { token: asked.token, confirm: typed.confirm.trim() });
      toast(drill ? "The drill runs." : "The emergency is in force.");
      renewEmergencies();
    } catch (error) {
      toast(error.message, { bad: true });
    }
  }
  async function release(one) {
    const values = await question({ title: "Release", text: "Limits end; sites go on by their own plans.", fields: [{ name: "reason", label: "Reason, for the log", minlength: 3, maxlength: 200 }] });
    if (!values) return;
    try {
      await api.post("grid/emergencies/release", { area: one.area_id, reason: values.reason });
      toast("It is released.");
      renewEmergencies();
    } catch (error) {
      toast(error.message, { bad: true });
    }
  }

  keep(ahead, async () => {
    const found = await api.get("grid/warnings");
    numbers.set("warnings", number(found.length));
    if (!found.length) return empty("No warning", "The coming day stays inside its limits, by the forecasts.");
    const rows = table([{ title: "When", show: (row) => `${moment(row.start_ns)}–${time(row.end_ns)}` }, { title: "What", show: (row) => row.kind.replaceAll("_", " ") }, { name: "element", title: "Where" }, { title: "Expected", right: true, show: (row) => number(row.value, 2) }, { title: "Limit", right: true, show: (row) => number(row.limit, 2) }, { name: "level", title: "How sure" }], { caption: "Warnings" });
    rows.set(found);
    return rows.element;
  }, 15);
  const changes = table([{ title: "Time", show: (row) => when(row.time_ns, fullMoment) }, { title: "Status", show: (row) => pill(row.status, row.status === "normal" ? "good" : row.status === "alert" ? "warn" : "bad") }, { name: "reason", title: "Why" }], { caption: "Status", none: ["The grid has been normal", "Changes of its status are listed here."] });
  keep(history, async () => {
    changes.set((await api.get("grid/status", { limit: 30 })).rows);
    return changes.element.isConnected ? null : changes.element;
  }, 10);
}

const sum = (by) => Object.values(by).reduce((total, one) => total + one, 0);

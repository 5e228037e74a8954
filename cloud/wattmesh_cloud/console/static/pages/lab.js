// The hardware lab: scenarios and faults on simulated hardware, and what the sites do about them.
import { ApiError, api, boot, card, empty, field, h, head, keep, known, number, pill, replace, setText, statePill, table, tiles, toast } from "../core.js";
import { chart } from "../charts.js";

const FAULTS = [["silent", "takes requests and never answers", "1"], ["exception", "answers with an exception code", "4"], ["delay_s", "answers so many seconds late", "1"], ["wrong_transaction", "answers with another request's number", "1"], ["wrong_function", "answers another function", "1"], ["short", "leaves the last register out", "1"], ["corrupt", "damages its frames", "1"], ["frozen", "repeats old values", "1"], ["refresh_s", "renews its values only so often, in seconds", "10"], ["drop", "ends the connection in an answer", "1"], ["single_client", "serves one connection only", "1"]];

export default async function (main, context) {
  let siteNames = [];
  let siteSelect = null;
  let deviceSelect = null;
  const numbers = tiles({ frequency: "Simulated frequency", nadir: "Lowest since the disturbance", faults: "Faults on", problems: "Sites with a problem" });
  const scenarios = h("div", {});
  const devices = h("div", {});
  const sites = h("div", {});
  main.append(head("Hardware lab", { tools: [h("button", { class: "button", onclick: () => act("lab/clear", {}, "Every fault is over.") }, "End every fault")] }),
    h("p", { class: "note-box" }, "Everything here acts on simulated hardware alone. Gateways, market and agents do not know that it is simulated."), numbers.element);
  const trace = chart({ label: "Frequency during the experiment", unit: "Hz", height: 220, scales: { y: { range: (_, low, high) => { const reach = Math.max(0.05, Math.abs((low ?? boot.nominal_hz) - boot.nominal_hz), Math.abs((high ?? boot.nominal_hz) - boot.nominal_hz)) * 1.15; return [boot.nominal_hz - reach, boot.nominal_hz + reach]; } } }, series: [{ label: "Frequency as measured", colour: "--c-grid", digits: 4, unit: "Hz" }], marks: () => [{ y: boot.nominal_hz, text: "nominal" }] });
  main.append(h("div", { class: "cols" }, card("Scenarios", { span: 5 }, scenarios), card("Watch the response", { span: 7, note: "frequency of the first site that measures it" }, trace.element, sites)),
    card("A fault of your choice", {}, form()), card("Simulated devices", {}, devices));

  function form() {
    siteSelect = h("select", { id: "lab-site" });
    deviceSelect = h("select", { id: "lab-device" }, ["meter", "battery", "inverter"].map((one) => h("option", { value: one }, one)));
    const kind = h("select", { id: "lab-fault" }, FAULTS.map(([name, text]) => h("option", { value: name }, `${name}: ${text}`)));
    const value = h("input", { id: "lab-value", value: "1", size: "6" });
    const span = h("input", { id: "lab-span", type: "number", value: "20", min: "1", max: "3600" });
    kind.addEventListener("change", () => { value.value = FAULTS.find(([name]) => name === kind.value)[2]; });
    return h("form", { class: "form", onsubmit: (event) => {
      event.preventDefault();
      act("lab/faults", { site: siteSelect.value, device: deviceSelect.value, name: kind.value, value: value.value, for_s: Number(span.value) }, `${kind.value} on the ${deviceSelect.value} of ${siteSelect.value} for ${span.value} s`);
    } }, field("Site", siteSelect), field("Device", deviceSelect), field("Fault", kind), field("Value", value), field("Seconds", span), h("button", { class: "button primary", type: "submit" }, "Inject the fault"));
  }

  const list = table([
    { name: "site", title: "Site", sort: (row) => row.site }, { name: "device", title: "Device", sort: (row) => row.device },
    { title: "Faults", show: (row) => (Object.keys(row.faults).length ? Object.entries(row.faults).map(([name, value]) => pill(value === true ? name : `${name} ${value}`, "bad")) : pill("healthy", "good")) },
    { title: "Requests served", right: true, show: (row) => number(row.requests), sort: (row) => row.requests },
  ], { caption: "Simulated devices", none: ["No simulated device", "Devices over OPC UA have no faults on demand."] });
  const renew = keep(devices, async () => {
    let state;
    try {
      state = await api.get("lab");
    } catch (error) {
      if (!(error instanceof ApiError) || error.status !== 404) throw error;
      replace(scenarios, empty("No simulated hardware", "Start the demo, or name the simulators' lab in the cloud's file (lab)."));
      return empty("No simulated hardware", error.message);
    }
    numbers.set("frequency", number(state.frequency_hz, 3, "Hz"), state.disturbed ? "disturbance under way" : "quiet");
    numbers.set("nadir", number(state.nadir_hz, 3, "Hz"));
    numbers.set("faults", number(state.devices.reduce((sum, one) => sum + Object.keys(one.faults).length, 0)));
    list.set(state.devices.map((one) => ({ ...one, id: `${one.site}-${one.device}` })));
    const names = [...new Set(state.devices.map((one) => one.site))];
    if (names.join() !== siteNames.join()) {
      siteNames = names;
      replace(siteSelect, names.map((one) => h("option", { value: one }, one)));
      replace(scenarios, state.scenarios.map((one) => h("div", { class: "scenario" }, h("div", {}, h("div", { class: "strong" }, one.title), h("div", { class: "small soft" }, one.fault ? "at the site chosen below" : `for ${one.disturb.hold_s} s, all sites`)),
        h("button", { class: "button", onclick: () => (one.fault
          ? act("lab/faults", { site: siteSelect.value, device: one.fault.device, name: one.fault.name, value: one.fault.value, for_s: one.fault.for_s }, one.title)
          : act("lab/disturbances", one.disturb, one.title)) , "aria-label": `Start: ${one.title}` }, "Start"))));
    }
    return list.element.isConnected ? null : list.element;
  }, 2);

  async function act(path, body, told) {
    try {
      await api.post(path, body);
      toast(`Started: ${told}`);
      renew();
    } catch (error) {
      toast(error.message, { bad: true });
    }
  }

  const ring = [];
  let source = null;
  context.on("frequency", "frequency", (data) => {
    source ||= Object.keys(data).sort()[0];
    if (!data[source]) return;
    ring.push(...data[source]);
    while (ring.length && ring[0][0] < ring.at(-1)[0] - 60000) ring.shift();
    trace.set([ring.map((row) => row[0] / 1000), ring.map((row) => row[1])]);
  });
  const rows = new Map();
  context.on("fleet", "fleet", (data) => {
    for (const one of data.sites) rows.set(one.id, one);
    const troubled = [...rows.values()].filter((one) => one.state !== "ok");
    numbers.set("problems", `${troubled.length} of ${rows.size}`);
    replace(sites, h("div", { class: "form" }, [...rows.values()].sort((a, b) => a.id.localeCompare(b.id)).map((one) => h("a", { href: `/site/${encodeURIComponent(one.id)}`, title: one.problem || "" }, one.id, " ", statePill(one.state)))));
  });
}

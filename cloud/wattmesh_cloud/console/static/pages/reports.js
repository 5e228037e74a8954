// Reports of a day, a week, a month: savings against stated baselines, peaks, trades, evidence, availability; as files, too.
import { api, boot, card, day, download, empty, energy, field, h, head, keep, known, money, moment, number, pill, power, price, problem, replace, segments, table, tiles, toast } from "../core.js";
import { chart } from "../charts.js";

export default async function (main) {
  const health = await api.get("health");
  let period = "day";
  let start = day(health.time_ns);
  let site = "";
  const numbers = tiles({ cost: "Energy cost", saved: "Saved against no battery", self: "Against self-consumption", peak: "Highest import of a site", availability: "Measured whole", flexibility: "Earned by flexibility" });
  const body = h("div", { class: "stack" });
  const files = h("div", {});
  const kept = h("div", {});
  const picker = h("input", { type: "date", id: "report-day", value: start, onchange: (event) => { if (event.target.value) { start = event.target.value; draw(); } } });
  const sites = h("select", { id: "report-site", onchange: (event) => { site = event.target.value; draw(); } }, h("option", { value: "" }, "All sites"));
  main.append(head("Reports"), h("div", { class: "form" }, segments("Period", [["day", "Day"], ["week", "Week"], ["month", "Month"]], period, (value) => { period = value; draw(); }), field("A day of it", picker), field("Site", sites),
    h("button", { class: "button primary", onclick: make }, "Write PDF and CSV")), numbers.element, files, body, card("Written by themselves", { note: "when a period is over" }, kept));
  for (const one of (await api.get("sites", { limit: 1000 })).rows) sites.append(h("option", { value: one.id }, one.id));

  const bars = chart({ label: "Energy", unit: "kWh", height: 240, series: [{ label: "Load", colour: "--c-load", step: true, digits: 2, unit: "kWh" }, { label: "Production", colour: "--c-pv", step: true, digits: 2, unit: "kWh", fill: 0.15 }, { label: "Import", colour: "--c-grid", step: true, digits: 2, unit: "kWh" }, { label: "Export", colour: "--c-battery", step: true, digits: 2, unit: "kWh" }] });
  const list = table([
    { name: "id", title: "Site" }, { title: "Load", right: true, show: (row) => energy(row.load_wh), sort: (row) => row.load_wh }, { title: "PV", right: true, show: (row) => energy(row.pv_wh) }, { title: "Import", right: true, show: (row) => energy(row.import_wh) }, { title: "Export", right: true, show: (row) => energy(row.export_wh) },
    { title: "Cost", right: true, show: (row) => money(row.cost), sort: (row) => row.cost }, { title: "No battery", right: true, show: (row) => money(row.cost_no_battery) }, { title: "Self-consumption", right: true, show: (row) => money(row.cost_self_consumption) },
    { title: "Peak", right: true, show: (row) => power(row.peak_import_w), sort: (row) => row.peak_import_w }, { title: "at", show: (row) => moment(row.peak_ns) }, { title: "Measured whole", right: true, show: (row) => number(row.availability * 100, 1, "%"), sort: (row) => row.availability },
  ], { caption: "Sites", none: ["No metered energy in this period", "Choose another day; quarter hours appear when they are over."] });
  const evidence = table([
    { name: "id", title: "Site" }, { title: "Trades", right: true, show: (row) => number(row.trades) }, { title: "Traded", right: true, show: (row) => energy(row.traded_wh) }, { title: "Mean price", right: true, show: (row) => price(row.trade_price_ticks) }, { title: "Flexibility", right: true, show: (row) => money(row.flexibility) },
    { title: "Frequency events", right: true, show: (row) => number(row.frequency_events) }, { title: "Answered", right: true, show: (row) => number(row.answered_events) }, { title: "Detected → written", right: true, show: (row) => number(row.detection_to_write_ms, 2, "ms") }, { title: "Largest response", right: true, show: (row) => power(row.largest_response_w) }, { title: "Alarms", right: true, show: (row) => number(row.alarms) },
  ], { caption: "Trades and evidence" });
  const baselines = h("div", { class: "small soft" });

  async function draw() {
    try {
      const found = await api.get("reports/figures", { period, start, site_id: site || undefined });
      const total = (name) => found.sites.reduce((sum, one) => sum + one[name], 0);
      numbers.set("cost", money(total("cost")));
      numbers.set("saved", money(total("cost_no_battery") - total("cost")), money(total("cost_no_battery")));
      numbers.set("self", money(total("cost_self_consumption") - total("cost")), money(total("cost_self_consumption")));
      const peak = found.sites.reduce((best, one) => (one.peak_import_w > (best?.peak_import_w ?? -1) ? one : best), null);
      numbers.set("peak", power(peak?.peak_import_w), peak?.peak_ns ? `${peak.site_id}, ${moment(peak.peak_ns)}` : "");
      numbers.set("availability", total("expected_slots") ? number((100 * total("slots")) / total("expected_slots"), 1, "%") : "–", `${number(total("slots"))} quarter hours`);
      numbers.set("flexibility", money(total("flexibility")));
      const rows = found.sites.map((one) => ({ ...one, id: one.site_id }));
      list.set(rows.some((one) => one.slots) ? rows : []);
      evidence.set(rows);
      replace(baselines, Object.entries(found.baselines).map(([name, text]) => h("p", {}, h("span", { class: "strong" }, name.replace("_", " ")), `: ${text}.`)), h("p", {}, "Energy that is still stored at the end is not valued; incomplete quarter hours count in the availability alone."));
      if (!bars.element.isConnected) replace(body, card("Energy", { note: period === "month" ? "a day each" : "an hour each" }, bars.element), card("Sites", {}, list.element, baselines), card("Trades, flexibility and response evidence", {}, evidence.element));
      bars.set([found.bars.map((one) => one.time_ns / 1e9), ...["load_wh", "pv_wh", "import_wh", "export_wh"].map((name) => found.bars.map((one) => one[name] / 1000))]);
    } catch (error) {
      replace(body, problem(error.message, draw));
    }
  }
  await draw();

  async function make() {
    try {
      let job = await api.post("reports", { period, start, site_id: site || null });
      while (["waiting", "running"].includes(job.state)) {
        replace(files, h("div", { class: "card" }, h("p", {}, `Writing the report: ${job.detail || "waiting"}`), h("progress", { value: job.progress, max: 1, "aria-label": "Progress of the report" })));
        await new Promise((resolve) => setTimeout(resolve, 400));
        job = await api.get(`jobs/${job.id}`);
      }
      replace(files, h("div", { class: "card form" }, job.state === "done" ? [pill("ready", "good"), job.files.map((name) => download(name, `jobs/${job.id}/files/${name}`))] : problem(`The report failed: ${job.detail}`, make)));
    } catch (error) {
      toast(error.message, { bad: true });
    }
  }

  const keptList = table([{ title: "Report", show: (row) => row.name.replace(".pdf", "") }, { title: "Size", right: true, show: (row) => number(row.bytes / 1000, 0, "kB") }, { title: "", show: (row) => download("PDF", `reports/${row.name}`) }], { caption: "Reports", none: ["None yet", "The cloud's file says which are written (reports.schedule)."] });
  keep(kept, async () => { keptList.set((await api.get("reports")).map((one) => ({ ...one, id: one.name }))); return keptList.element.isConnected ? null : keptList.element; }, 30);
}

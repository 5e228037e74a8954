// All sites: what wants somebody's eyes first.
import { api, empty, flowText, h, head, keep, known, number, power, replace, segments, setText, statePill, tiles } from "../core.js";

const ORDER = ["alarm", "away", "stale", "warning", "ok"];
const ROWS = [["grid_w", "Grid"], ["pv_w", "PV"], ["battery_w", "Battery"], ["load_w", "Load"]];

export default async function (main, context) {
  const sites = new Map();
  const cards = new Map();
  let only = "all";
  let text = "";
  const summary = tiles({ grid: "Grid exchange", pv: "Production", load: "Load", soc: "Stored", frequency: "Frequency", sites: "Sites connected" });
  const list = h("div", { class: "sites" });
  const none = h("div", {});
  const search = h("input", { type: "search", id: "search", placeholder: "Find a site", "aria-label": "Find a site", oninput: (event) => { text = event.target.value.trim().toLowerCase(); order(); } });
  main.append(
    head("Fleet", { tools: [segments("Which sites", [["all", "All"], ["problems", "Problems"]], only, (value) => { only = value; order(); }), search] }),
    summary.element, none, list);

  function build(id) {
    const values = Object.fromEntries(ROWS.map(([key]) => [key, h("dd", {}, "–")]));
    const state = h("span", {});
    const what = h("div", { class: "what" });
    const level = h("span", {});
    const bar = h("div", { class: "bar", role: "img", "aria-label": "State of charge unknown" }, level);
    const charge = h("div", { class: "small soft num" });
    const element = h("a", { class: "card site", href: `/site/${encodeURIComponent(id)}` },
      h("div", { class: "name" }, h("span", {}, id), state), what,
      h("dl", {}, ROWS.map(([key, title]) => [h("dt", {}, title), values[key]])), bar, charge);
    return { element, values, state, what, level, bar, charge, shown: null };
  }

  function draw(site) {
    const one = cards.get(site.id) || build(site.id);
    cards.set(site.id, one);
    one.element.dataset.state = site.state;
    if (one.shown !== site.state) { replace(one.state, statePill(site.state)); one.shown = site.state; }
    setText(one.what, site.problem || (site.plan_source ? `follows its ${site.plan_source}` : ""));
    one.what.className = `what ${site.state === "alarm" ? "bad" : site.state === "ok" ? "" : "warn"}`;
    for (const [key] of ROWS) setText(one.values[key], flowText(key, key === "pv_w" && known(site.flows[key]) ? -site.flows[key] : site.flows[key]));
    const soc = site.flows.soc_percent;
    one.level.style.width = known(soc) ? `${Math.max(0, Math.min(100, soc))}%` : "0";
    const words = known(soc) ? `Charge ${number(soc, 0, "%")}` : "Charge unknown";
    one.bar.setAttribute("aria-label", words);
    setText(one.charge, words);
  }

  function order() {
    const shown = [...sites.values()]
      .filter((site) => (only === "all" || site.state !== "ok") && (!text || site.id.toLowerCase().includes(text)))
      .sort((a, b) => ORDER.indexOf(a.state) - ORDER.indexOf(b.state) || a.id.localeCompare(b.id, undefined, { numeric: true }));
    const elements = shown.map((site) => cards.get(site.id).element);
    if (elements.length !== list.children.length || elements.some((one, index) => list.children[index] !== one)) list.replaceChildren(...elements);
    replace(none, shown.length ? null : h("div", { class: "card" }, sites.size
      ? empty(only === "problems" && !text ? "No site has a problem" : "No site fits", only === "problems" && !text ? "All are connected, and their data are fresh." : "Change the filter above.")
      : empty("No site yet", "Start a gateway: ", h("code", {}, "wattmesh gateway run SITE.yaml"), ". It appears here by itself.")));
  }

  function total(key, sign = 1) {
    const values = [...sites.values()].map((site) => site.flows[key]).filter(known);
    return values.length ? sign * values.reduce((a, b) => a + b, 0) : null;
  }

  function sums(grid) {
    const all = [...sites.values()];
    const connected = all.filter((site) => site.online).length;
    const charges = all.map((site) => site.flows.soc_percent).filter(known);
    const exchange = total("grid_w");
    summary.set("grid", known(exchange) ? power(Math.abs(exchange)) : "–", known(exchange) ? (exchange >= 0 ? "import" : "export") : "");
    summary.set("pv", power(total("pv_w", -1)));
    summary.set("load", power(total("load_w")));
    summary.set("soc", charges.length ? number(charges.reduce((a, b) => a + b, 0) / charges.length, 0, "%") : "–", "mean charge");
    summary.set("sites", `${connected} of ${all.length}`, all.length - connected ? `${all.length - connected} away` : "");
    if (grid) summary.set("frequency", number(grid.frequency_hz, 3, "Hz"), grid.status === "normal" ? "grid normal" : `grid: ${grid.status}`);
  }

  await keep(h("div", {}), async () => {
    const page = await api.get("sites", { limit: 1000 });
    for (const site of page.rows) { sites.set(site.id, site); draw(site); }
    order();
    sums(null);
  }, 60).first;
  context.on("fleet", "fleet", (data) => {
    if (data.all) for (const id of [...sites.keys()]) if (!data.sites.some((one) => one.id === id)) { sites.delete(id); cards.delete(id); }
    for (const site of data.sites) { sites.set(site.id, site); draw(site); }
    if (data.sites.length) order();
    sums(data.grid);
  });
}

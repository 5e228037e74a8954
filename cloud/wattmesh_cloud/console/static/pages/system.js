// The cloud process: ingest, backlog, versions, jobs; people and tokens; the audit log.
import { api, boot, card, download, empty, field, fullMoment, h, head, keep, known, may, me, number, pill, question, replace, table, tiles, toast, when } from "../core.js";

export default async function (main) {
  const numbers = tiles({ records: "Records stored", batches: "Batches stored", backlog: "Batches that wait at gateways", dead: "Dead letters", lost: "Batches lost", version: "Version" });
  const gateways = h("div", {});
  const jobs = h("div", {});
  const facts = h("div", {});
  main.append(head("System"), me.host ? numbers.element : "", card("Gateways", {}, gateways),
    h("div", { class: "cols" }, card("Jobs", { span: 7, note: "longer work, with its files" }, jobs), me.host ? card("Addresses and figures", { span: 5 }, facts) : ""));

  const list = table([
    { name: "site_id", title: "Site", sort: (row) => row.site_id }, { title: "State", show: (row) => pill(row.online ? "connected" : "away", row.online ? "good" : "quiet"), sort: (row) => row.online },
    { title: "Software", show: (row) => row.software ?? "–" }, { title: "Memory", right: true, show: (row) => number(row.resident_mb, 0, "MB"), sort: (row) => row.resident_mb ?? 0 }, { title: "Cycles", right: true, show: (row) => number(row.cycles) },
    { title: "Longest overrun", right: true, show: (row) => number(row.cycle_overrun_max_ms, 0, "ms"), sort: (row) => row.cycle_overrun_max_ms ?? 0 }, { title: "Waiting batches", right: true, show: (row) => number(row.batches_pending), sort: (row) => row.batches_pending ?? 0 },
    { title: "Commands applied", right: true, show: (row) => (known(row.commands_sent) ? `${number(row.commands_applied)} of ${number(row.commands_sent)}` : "–") }, { title: "Told", show: (row) => when(row.time_ns, fullMoment) },
  ], { caption: "Gateways", none: ["No gateway yet", "Start one: wattmesh gateway run SITE.yaml"] });
  keep(gateways, async () => {
    const found = await api.get("gateways");
    list.set(found.map((one) => ({ ...one, id: one.site_id })));
    numbers.set("backlog", number(found.reduce((sum, one) => sum + (one.batches_pending || 0), 0)), `${found.filter((one) => one.online).length} of ${found.length} connected`);
    return list.element.isConnected ? null : list.element;
  }, 5);
  keep(jobs, async () => {
    const found = await api.get("jobs");
    if (!found.length) return empty("No job", "Reports and exports run as jobs; their progress shows here.");
    return h("ul", { class: "why" }, found.slice(0, 12).map((one) => h("li", {}, h("div", {}, h("span", { class: "strong" }, one.kind), " ", pill(one.state, one.state === "done" ? "good" : one.state === "failed" ? "bad" : "quiet"), h("span", { class: "small soft" }, ` ${one.asked_by}, ${fullMoment(one.asked_ns)}`)),
      one.state === "running" && h("progress", { value: one.progress, max: 1, "aria-label": `Progress of ${one.kind}` }), one.detail && h("div", { class: "small" }, one.detail), one.files.map((name) => [download(name, `jobs/${one.id}/files/${name}`), " "]))));
  }, 3);
  if (me.host) keep(facts, async () => {
    const found = await api.get("system");
    numbers.set("records", number(found.ingest.records));
    numbers.set("batches", number(found.ingest.batches), `${number(found.ingest.duplicates)} came twice`);
    numbers.set("dead", number(found.dead_letters), found.dead_letters ? "wattmesh ingest dead" : "");
    numbers.set("lost", number(found.ingest.batches_lost || 0));
    numbers.set("version", found.version);
    const rows = [["A2A address", found.a2a_address], ["A2A card, retained at", found.a2a_card], ["OpenADR", found.openadr ?? "not served"], ["Public address", found.public_url ?? "loopback only"], ["API description", "/api/openapi.json"], ["Prometheus", "/metrics"], ["Files in the lake", number(found.lake_files)], ...Object.entries(found.ingest).sort().map(([name, value]) => [`ingest: ${name.replaceAll("_", " ")}`, number(value)])];
    return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Addresses and figures" }, h("table", {}, h("tbody", {}, rows.map(([name, value]) => h("tr", {}, h("td", {}, name), h("td", { class: "right" }, value))))));
  }, 10);

  if (may("administer", { host: true })) people(main);
}

function people(main) {
  const users = h("div", {});
  const tokens = h("div", {});
  const audit = h("div", {});
  main.append(
    h("div", { class: "cols" },
      card("People", { span: 6, tools: [h("button", { class: "button small", onclick: addUser }, "Add")] }, users), card("Tokens of programs", { span: 6, tools: [h("button", { class: "button small", onclick: addToken }, "Make one")] }, tokens)),
    card("Audit log", { note: "who did what; each entry holds the hash of the one before" }, audit));
  const roles = ["viewer", "operator", "trader", "engineer", "admin"];
  const list = table([{ name: "name", title: "Name" }, { name: "tenant", title: "Tenant" }, { name: "role", title: "Role" }, { title: "By", show: (row) => (row.local ? "password" : "OpenID") }, { title: "State", show: (row) => pill(row.disabled ? "off" : "on", row.disabled ? "bad" : "good") },
    { title: "", show: (row) => h("button", { class: "button small", onclick: () => change(row) }, row.disabled ? "Switch on" : "Switch off") }], { caption: "People", none: ["No account yet", "In the demo nobody needs one."] });
  const drawUsers = keep(users, async () => { list.set((await api.get("users")).map((one) => ({ ...one, id: one.name }))); return list.element.isConnected ? null : list.element; }, 30);
  const tokenList = table([{ name: "id", title: "Name" }, { name: "tenant", title: "Tenant" }, { name: "role", title: "Role" }, { title: "Until", show: (row) => when(row.expires_ns, fullMoment) }, { title: "", show: (row) => h("button", { class: "button small danger", onclick: () => revoke(row) }, "Revoke") }], { caption: "Tokens", none: ["No token yet", "Programs (Prometheus, scripts) come in with one."] });
  const drawTokens = keep(tokens, async () => { tokenList.set(await api.get("tokens")); return tokenList.element.isConnected ? null : tokenList.element; }, 30);
  const log = table([{ title: "Time", show: (row) => when(row.time_ns, fullMoment) }, { name: "actor", title: "Who" }, { name: "action", title: "What" }, { title: "Outcome", show: (row) => pill(row.outcome, row.outcome === "done" ? "good" : row.outcome === "begun" || row.outcome === "asked" ? "quiet" : "warn") }, { title: "Detail", show: (row) => h("span", { class: "small soft" }, Object.entries(row.detail).map(([name, value]) => `${name}: ${value}`).join("; ").slice(0, 220)) }], { caption: "Audit log", none: ["Nothing yet", ""] });
  const verdict = h("p", { class: "small" });
  keep(audit, async () => {
    const [rows, found] = await Promise.all([api.get("audit", { limit: 100 }), api.get("audit/verdict")]);
    log.set(rows.map((one) => ({ ...one, id: one.sequence })));
    replace(verdict, found.fault ? pill(found.fault, "bad") : pill(`chain of ${number(found.entries)} entries is whole`, "good"));
    return log.element.isConnected ? null : h("div", {}, verdict, log.element);
  }, 15);
  const done = async (work, after) => {
    try { await work(); } catch (error) { toast(error.message, { bad: true }); }
    after();
  };
  async function addUser() {
    const values = await question({ title: "Add a person", action: "Add", fields: [{ name: "name", label: "Name", maxlength: 64 }, { name: "tenant", label: "Tenant", value: "fleet" }, { name: "role", label: "Role", options: roles }, { name: "password", label: "Password", type: "password", minlength: 12, maxlength: 200, hint: "12 characters or more" }] });
    if (values) done(() => api.post("users", values), drawUsers);
  }
  async function change(row) { done(() => api.patch(`users/${encodeURIComponent(row.name)}`, { disabled: !row.disabled }), drawUsers); }
  async function addToken() {
    const values = await question({ title: "Make a token", action: "Make", fields: [{ name: "id", label: "Name", maxlength: 64 }, { name: "tenant", label: "Tenant", value: "fleet" }, { name: "role", label: "Role", options: roles }, { name: "days", label: "Valid, days", type: "number", value: 365, min: 1, max: 3650 }] });
    if (!values) return;
    done(async () => {
      const made = await api.post("tokens", values);
      await question({ title: "The token, shown this once", action: "I have it", text: made.token, fields: [] });
    }, drawTokens);
  }
  async function revoke(row) { done(() => api.remove(`tokens/${encodeURIComponent(row.id)}`), drawTokens); }
}

// Devices of the sites: templates, quality, write budgets; alarms; what to do about them.
import { api, boot, card, empty, fullMoment, h, head, keep, known, may, me, number, pill, replace, table, tiles, toast, when } from "../core.js";

/** What to do about a device, in the order in which it helps. */
function advice(row) {
  const failed = row.polls + row.failed_polls ? row.failed_polls / (row.polls + row.failed_polls) : 0;
  if (row.state !== "ready") return ["bad", "It does not answer: look at power, cable and address; wattmesh device probe tells more."];
  if (row.good < row.points) return ["warn", `${row.points - row.good} of its values cannot be used now: look at the site's page for which.`];
  const full = row.budgets.find((one) => one.used >= one.allowed);
  if (full) return ["warn", `Today's flash writes of ${full.control} are used up; setpoints wait for tomorrow (UTC). Prefer a setting in memory.`];
  if (failed > 0.02) return ["warn", `${number(failed * 100, 1)} % of its polls fail: another client on the same connection, or a weak line.`];
  return ["good", "Nothing to do."];
}

export default async function (main) {
  const numbers = tiles({ devices: "Devices", ready: "Answer", quality: "Good values", writes: "Writes since the start", alarms: "Alarms that stand" });
  const list = h("div", {});
  const alarms = h("div", {});
  main.append(head("Devices"), numbers.element, card("Alarms that stand", { note: "the worst first" }, alarms), card("Devices", { note: "as their drivers see them, asked of the gateways" }, list));

  const rows = table([
    { name: "site", title: "Site", show: (row) => h("a", { href: `/site/${encodeURIComponent(row.site)}` }, row.site), sort: (row) => row.site }, { name: "device_id", title: "Device", sort: (row) => row.device_id }, { title: "Template", show: (row) => h("code", {}, row.template), sort: (row) => row.template },
    { title: "State", show: (row) => pill(row.state === "ready" ? "answers" : row.state.replaceAll("_", " "), row.state === "ready" ? "good" : "bad"), sort: (row) => row.state },
    { title: "Good values", right: true, show: (row) => `${row.good} of ${row.points}`, sort: (row) => row.good / Math.max(1, row.points) },
    { title: "Failed polls", right: true, show: (row) => `${number(row.failed_polls)} of ${number(row.polls + row.failed_polls)}`, sort: (row) => row.failed_polls }, { title: "Writes", right: true, show: (row) => number(row.writes), sort: (row) => row.writes },
    { title: "Flash writes today", show: (row) => (row.budgets.length ? row.budgets.map((one) => h("div", { class: "small" }, `${one.control}: ${one.used} of ${one.allowed}`)) : h("span", { class: "soft small" }, "none kept in flash")) },
    { title: "Advice", show: (row) => { const [kind, text] = advice(row); return h("span", { class: `small ${kind}` }, text); } },
  ], { caption: "Devices", none: ["No device is known", "They are asked of gateways that are connected."] });
  keep(list, async () => {
    const sites = (await api.get("sites", { limit: 100 })).rows.filter((one) => one.online);
    const answers = await Promise.allSettled(sites.map(async (one) => (await api.get(`sites/${encodeURIComponent(one.id)}/devices`)).map((row) => ({ ...row, site: one.id, id: `${one.id}-${row.device_id}` }))));
    const all = answers.flatMap((one) => (one.status === "fulfilled" ? one.value : []));
    rows.set(all);
    numbers.set("devices", number(all.length));
    numbers.set("ready", `${all.filter((one) => one.state === "ready").length} of ${all.length}`);
    numbers.set("quality", all.length ? number((100 * all.reduce((sum, one) => sum + one.good, 0)) / all.reduce((sum, one) => sum + one.points, 0), 0, "%") : "–");
    numbers.set("writes", number(all.reduce((sum, one) => sum + one.writes, 0)));
    return rows.element.isConnected ? null : rows.element;
  }, 10);

  const standing = table([
    { title: "Severity", show: (row) => pill(row.severity, row.severity === "critical" ? "bad" : row.severity === "warning" ? "warn" : "quiet") }, { name: "site_id", title: "Site", sort: (row) => row.site_id }, { title: "Asset", show: (row) => row.asset_id ?? "–" }, { name: "text", title: "What" },
    { title: "Since", show: (row) => when(row.raised_ns, fullMoment), sort: (row) => row.raised_ns },
    { title: "", show: (row) => (row.acknowledged_by ? h("span", { class: "small soft" }, `seen by ${row.acknowledged_by}`) : may("operate") ? h("button", { class: "button small", onclick: () => see(row) }, "I look after it") : "") },
  ], { caption: "Alarms", none: ["No alarm stands", "What a person should know of appears here."] });
  const renew = keep(alarms, async () => {
    const found = await api.get("alarms");
    standing.set(found);
    numbers.set("alarms", number(found.length));
    return standing.element.isConnected ? null : standing.element;
  }, 5);
  async function see(row) {
    try {
      await api.post(`sites/${encodeURIComponent(row.site_id)}/alarms/${encodeURIComponent(row.id)}/acknowledge`, {});
    } catch (error) {
      toast(error.message, { bad: true });
    }
    renew();
  }
}

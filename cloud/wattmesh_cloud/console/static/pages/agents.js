// The agents: what each saw, proposed, was refused, chose; what waits for a person; the kill switch.
import { api, boot, card, command, confirmed, empty, fullMoment, h, head, keep, known, may, me, moment, number, pill, power, question, replace, segments, table, toast, when } from "../core.js";

const OUTCOMES = { done: "good", stopped: "bad", waiting: "warn", failed: "bad" };

/** A proposal in words. */
function words(proposal) {
  const rest = Object.entries(proposal).filter(([name]) => !["kind", "rationale"].includes(name));
  return `${proposal.kind?.replaceAll("_", " ") ?? "?"} (${rest.map(([name, value]) => `${name.replaceAll("_", " ")} ${value}`).join(", ")})`;
}

/** One message between two agents. */
function turnBlock(one) {
  return h("div", { class: "said" },
    h("div", { class: "small soft" }, `${one.speaker} to ${one.listener}${one.subject ? ` about ${one.subject}` : ""} at `, when(one.time_ns, fullMoment), " ", one.what === "refusal" && pill("no answer", "bad"), one.source === "model" && pill("worded by the model")),
    one.text, one.citations.length > 0 && h("div", { class: "small soft" }, `Rests on: ${one.citations.join(", ")}`));
}

export default async function (main, context) {
  const operator = may("operate", { host: true });
  const control = h("div", {});
  const waiting = h("div", {});
  const talk = h("div", {});
  const turns = h("div", {});
  const roster = h("div", {});
  const records = h("div", {});
  const audit = h("div", {});
  let agent = "";
  main.append(
    head("Agents", { tools: operator ? [h("button", { class: "button primary", onclick: propose }, "Ask for something")] : [] }),
    h("div", { class: "cols" }, card("Kill switch", { span: 4, note: "of all language models" }, control), card("Waits for a person", { span: 8, note: "nothing of it has happened yet" }, waiting)),
    card("Conversation", { note: "answers rest on records, which they name" }, talk),
    card("Decisions", { note: "what each saw, proposed, was refused, chose", tools: [segments("Which agent", [["", "All"], ["producer", "Producer"], ["consumer", "Consumer"], ["market-supervisor", "Market"], ["grid-optimisation", "Grid"], ["forecasting", "Forecasting"]], agent, (value) => { agent = value; drawRecords(); })] }, records),
    card("Between agents", { note: "what they asked each other, answered and refused" }, turns),
    card("What they do now", {}, roster),
    operator ? card("Commands", { note: "asked for by people, with what came of them" }, audit) : "");

  const drawSwitch = keep(control, async () => {
    const found = await api.get("agents/switch");
    return h("div", { class: "stack" },
      h("div", {}, found.on ? pill(found.model ? "models may refine" : "no model connected", found.model ? "good" : "quiet") : pill("models are off", "bad")),
      h("p", { class: "small" }, found.model ? `Model: ${found.model}. ` : "", found.on ? "Policies decide; a model may refine, inside the same guards." : `Switched off by ${found.actor}: ${found.reason || "no reason given"}. The policies go on.`),
      operator && (found.on
        ? h("button", { class: "button danger primary", onclick: async () => { await command({ kind: "models.off", title: "Switch all models off", text: "From this moment no language model has any effect. Policies, market and control go on.", danger: true, build: () => ({}) }); drawSwitch(); drawCommands?.(); } }, "Switch all models off")
        : h("button", { class: "button", onclick: async () => { await command({ kind: "models.on", title: "Switch models on", text: "Models may refine again what the policies propose.", build: () => ({}) }); drawSwitch(); drawCommands?.(); } }, "Switch on again")));
  }, 10);

  const said = h("div", { class: "talk", tabindex: "0", role: "log", "aria-label": "Conversation" });
  const words_ = h("input", { id: "question", maxlength: 400, minlength: 3, required: true, placeholder: "Why did home-1 charge last night?", "aria-label": "Your question", size: "44" });
  const tries = ["Why did home-1 do what it does now?", "What did demand response bring?", "Which sites have alarms?", "Prepare demand response for tomorrow's peak"];
  const ask = async (text) => {
    said.append(h("div", { class: "said mine" }, text));
    const answer = said.appendChild(h("div", { class: "said" }, "…"));
    try {
      const found = await api.post("agents/ask", { question: text });
      replace(answer, found.text, found.citations.length > 0 && h("div", { class: "small soft" }, "Rests on: ", found.citations.map((one) => `${one.id} (${moment(one.time_ns)})`).join(", ")), found.approval && h("div", { class: "small warn" }, "A proposal waits for a person above."));
      if (found.approval) drawWaiting();
    } catch (error) {
      replace(answer, h("span", { class: "bad" }, error.message));
    }
    said.scrollTop = said.scrollHeight;
  };
  talk.append(said, h("form", { class: "form", onsubmit: (event) => { event.preventDefault(); const text = words_.value.trim(); words_.value = ""; if (text) ask(text); } }, words_, h("button", { class: "button primary", type: "submit" }, "Ask")),
    h("div", { class: "form small" }, tries.map((one) => h("button", { class: "button small", type: "button", onclick: () => ask(one) }, one))));

  const drawWaiting = keep(waiting, async () => {
    if (!me.host) return empty("Nothing to decide", "Proposals of the whole fleet are decided by its operator.");
    const found = await api.get("agents/approvals", { waiting: true });
    if (!found.length) return empty("Nothing waits", "Proposals that a guard holds back for a person appear here.");
    return h("ul", { class: "why" }, found.map((one) => h("li", {},
      h("div", {}, h("span", { class: "strong" }, words(one.proposal)), " ", pill(one.agent)),
      h("div", {}, one.proposal.rationale), h("div", { class: "small soft" }, `${one.reason} · by ${one.origin} · until `, when(one.expires_ns)),
      operator && h("div", { class: "form" }, h("button", { class: "button small primary", onclick: () => decide(one, "approve") }, "Approve"), h("button", { class: "button small danger", onclick: () => decide(one, "refuse") }, "Refuse")))));
  }, 5);

  async function decide(one, how) {
    const values = await question({ title: how === "approve" ? "Approve" : "Refuse", danger: how === "refuse", action: how === "approve" ? "Approve" : "Refuse", text: `${words(one.proposal)}. ${how === "approve" ? "The guards look again before it has an effect." : ""}`, fields: [{ name: "note", label: "Note, for the log", required: false, maxlength: 400 }] });
    if (!values) return;
    try {
      await api.post(`agents/approvals/${encodeURIComponent(one.id)}/${how}`, { note: values.note });
      toast(how === "approve" ? "Approved; it takes effect at the agents' next look." : "Refused.");
    } catch (error) {
      toast(error.message, { bad: true });
    }
    drawWaiting();
  }

  const drawRecords = keep(records, async () => {
    const found = await api.get("agents/records", { limit: 40, agent: agent || undefined });
    if (!found.length) return empty("No decision yet", "The agents look every five minutes at market and grid, every hour at each site.");
    const open = new Set([...records.querySelectorAll("details[open]")].map((one) => one.dataset.id));
    return h("ul", { class: "why talk", tabindex: "0" }, found.map((one) => h("li", {},
      h("div", {}, h("span", { class: "strong" }, one.agent), ` about ${one.subject} `, h("span", { class: "small soft" }, "at ", when(one.time_ns, fullMoment)), " ", one.model !== "absent" && pill(`model: ${one.model.replaceAll("_", " ")}`)),
      one.entries.length ? one.entries.map((entry) => h("div", {}, pill(entry.outcome, OUTCOMES[entry.outcome] || "quiet"), " ", words(entry.proposal), h("div", { class: "small soft" }, `${entry.proposal.rationale ?? ""}${entry.guard ? ` · guard ${entry.guard}: ${entry.reason}` : entry.reason ? ` · ${entry.reason}` : ""} · ${entry.origin}`)))
        : h("div", { class: "soft" }, "looked, and saw nothing to change"),
      one.outcome && h("div", { class: "small" }, `What came of it: ${Object.entries(one.outcome).map(([name, value]) => `${name.replaceAll("_", " ")} ${typeof value === "number" ? number(value, 2) : value}`).join(", ")}`),
      h("details", { class: "more", "data-id": one.id, open: open.has(one.id) }, h("summary", {}, "What it saw"), h("pre", {}, JSON.stringify(one.situation, null, 2))))));
  }, 8);

  const read = new Map();
  keep(turns, async () => {
    const found = await api.get("agents/conversations", { limit: 20 });
    if (!found.length) return empty("No conversation yet", "The market's agent asks the others when it decides something; a model asks where it needs to know more.");
    const open = new Set([...turns.querySelectorAll("details[data-conversation][open]")].map((one) => one.dataset.conversation));
    for (const id of read.keys()) if (!found.some((one) => one.id === id)) read.delete(id);
    await Promise.all(found.filter((one) => open.has(one.id) && read.get(one.id)?.length !== one.turns).map(async (one) => read.set(one.id, await api.get(`agents/conversations/${encodeURIComponent(one.id)}`))));
    return h("ul", { class: "why talk", tabindex: "0", role: "region", "aria-label": "Conversations between agents" }, found.map((one) => {
      const place = h("div", { class: "stack" }, read.has(one.id) ? read.get(one.id).map(turnBlock) : null);
      const show = async (event) => {
        if (!event.target.open || read.get(one.id)?.length === one.turns) return;
        replace(place, h("div", { class: "soft" }, "…"));
        try {
          read.set(one.id, await api.get(`agents/conversations/${encodeURIComponent(one.id)}`));
          replace(place, read.get(one.id).map(turnBlock));
        } catch (error) {
          replace(place, h("span", { class: "bad" }, error.message));
        }
      };
      return h("li", {}, h("details", { class: "more", "data-conversation": one.id, open: open.has(one.id), ontoggle: show },
        h("summary", {}, `${one.agents.join(", ")} about ${one.subjects.join(", ") || "the fleet"}`), place),
      h("div", { class: "small soft" }, `${one.turns} turns`, one.refusals ? `, ${one.refusals} refused` : "", " at ", when(one.last_ns, fullMoment), ` · ${one.id}`));
    }));
  }, 10);

  keep(roster, async () => {
    const found = await api.get("agents");
    return h("div", { class: "cols" }, found.map((one) => h("section", { class: "span-4" }, h("h3", {}, one.id), h("p", { class: "small soft" }, h("code", {}, one.address)),
      h("table", {}, h("tbody", {}, Object.entries(one.facts).filter(([, value]) => typeof value !== "object" || value === null).map(([name, value]) => h("tr", {}, h("td", {}, name.replaceAll("_", " ")), h("td", { class: "right" }, typeof value === "number" ? number(value, Number.isInteger(value) ? 0 : 2) : String(value ?? "–") || "–"))))))));
  }, 15);

  const list = table([
    { title: "Asked", show: (row) => when(row.asked_ns, fullMoment) }, { name: "kind", title: "What" }, { name: "asked_by", title: "Who" }, { name: "reason", title: "Why" },
    { title: "State", show: (row) => pill(row.state, row.state === "done" ? "good" : row.state === "waiting" ? "warn" : "bad") }, { title: "What came of it", show: (row) => row.result ?? (row.confirm ? secondStep(row) : "–") },
  ], { caption: "Commands", none: ["No command yet", "What people ask for by hand is listed here."] });
  const drawCommands = operator && keep(audit, async () => {
    list.set((await api.get("commands", { limit: 30 })).rows);
    return list.element.isConnected ? null : list.element;
  }, 10);

  /** What a waiting command needs: somebody else's yes, or its own asker's word. */
  function secondStep(row) {
    if (row.steps !== "approve") return "waits for its second step";
    const what = Object.entries(row.arguments).filter(([, value]) => value !== "").map(([name, value]) => `${name} ${String(value).replaceAll("_", " ")}`).join(", ");
    const mine = row.asked_by === `${me.kind}:${me.name}`;
    const end = async (work) => {
      try {
        const made = await work();
        if (made) toast(made.state === "done" ? made.result : `${made.state}: ${made.result}`, { bad: made.state !== "done" });
      } catch (error) {
        toast(error.message, { bad: true });
      }
      drawCommands();
    };
    return h("div", {}, h("div", { class: "small" }, what), mine ? h("div", { class: "small soft" }, "somebody else has to approve it") : "",
      h("div", { class: "form" }, mine ? "" : h("button", { class: "button small primary", onclick: () => end(() => confirmed(row, `${row.kind}, ${what}, asked for by ${row.asked_by}`)) }, "Approve"),
        h("button", { class: "button small", onclick: () => end(() => api.post(`commands/${row.id}/reject`, {})) }, mine ? "Take back" : "Refuse")));
  }

  async function propose() {
    const sites = (await api.get("sites", { limit: 200 })).rows.map((one) => one.id);
    const values = await question({
      title: "Ask an agent", action: "Propose", text: "It goes through the agent's guards; where they say so, it waits for a person.",
      fields: [
        { name: "kind", label: "What", options: [{ value: "set_reserve", label: "Producer: keep a reserve" }, { value: "set_peak_limit", label: "Consumer: limit import" }, { value: "set_trading", label: "Producer: stop trading" }, { value: "retrain", label: "Forecasting: learn anew" }, { value: "halt_market", label: "Market: halt" }] },
        { name: "site", label: "Site", options: sites }, { name: "value", label: "Reserve in %, or limit in kW", type: "number", value: 30, min: 0, max: 100, step: 0.1 },
        { name: "rationale", label: "Why", minlength: 3, maxlength: 300 },
      ],
    });
    if (!values) return;
    const { kind, site, value, rationale } = values;
    const area = kind === "halt_market" ? (await api.get("market/areas"))[0] : null;
    const made = {
      set_reserve: ["producer", { kind, site_id: site, reserve_soc_percent: value, rationale }], set_peak_limit: ["consumer", { kind, site_id: site, limit_w: value * 1000, rationale }],
      set_trading: ["producer", { kind, site_id: site, trade: false, rationale }], retrain: ["forecasting", { kind, site_id: site, rationale }], halt_market: ["market-supervisor", { kind, area, rationale }],
    }[kind];
    try {
      const record = await api.post("agents/proposals", { agent: made[0], about: area ?? site, proposal: made[1] });
      const entry = record.entries.at(-1);
      toast(entry.outcome === "done" ? "Done." : entry.outcome === "waiting" ? "It waits for a person." : `Stopped by ${entry.guard}: ${entry.reason}`, { bad: entry.outcome === "stopped" });
    } catch (error) {
      toast(error.message, { bad: true });
    }
    drawRecords();
    drawWaiting();
  }
}

// The market: open products with their depth, trades, prices; accounts, exposure and statements; orders by hand.
import { api, boot, card, command, download, empty, energy, h, head, keep, known, may, money, number, pill, price, question, replace, slot, table, tiles, time, toast, units, when } from "../core.js";
import { chart } from "../charts.js";

const STATUS = { continuous: ["trading", "good"], call: ["call collects", "good"], halted: ["halted", "bad"], closed: ["closed", "quiet"], void: ["void", "warn"] };

export default async function (main, context) {
  const numbers = tiles({ state: "Market", trades: "Trades", volume: "Volume traded", cleared: "Slots cleared", settled: "Slots settled", ledger: "Ledger sum" });
  let products = [];
  let chosen = null;
  const halt = h("button", { class: "button danger", onclick: async () => { await command({ kind: "market.halt", title: "Halt the market", text: "No order is taken until somebody resumes it. Orders in the book stay.", danger: true }); renew(); } }, "Halt");
  const resume = h("button", { class: "button", onclick: async () => { await command({ kind: "market.resume", title: "Resume the market", text: "Orders are taken again." }); renew(); } }, "Resume");
  const order = h("button", { class: "button primary", onclick: () => place() }, "Place an order");
  main.append(head("Market", { tools: [may("trade") && order, may("operate", { host: true }) && [halt, resume]] }), numbers.element);

  const list = table([
    { title: "Delivery", show: (row) => slot(row.slot_start_ns), sort: (row) => row.slot_start_ns },
    { title: "State", show: (row) => pill(...(STATUS[row.status] || [row.status])) },
    { title: "Best bid", right: true, show: (row) => (row.bids[0] ? price(row.bids[0].price_ticks) : "–") },
    { title: "Best offer", right: true, show: (row) => (row.asks[0] ? price(row.asks[0].price_ticks) : "–") },
    { title: "Volume", right: true, show: (row) => energy(row.volume_wh) },
    { title: "Index", right: true, show: (row) => price(row.index_ticks) },
  ], { caption: "Open products", none: ["No product is open", "Products open as soon as somebody orders for their slot."], onpick: (row) => { chosen = row.slot_start_ns; depth(); } });
  const book = h("div", {});
  const prices = chart({ label: "Clearing price and volume of each slot", unit: "ct/kWh", height: 230, second: { scale: "wh", unit: "kWh" },
    series: [{ label: "Price", colour: "--c-grid", digits: 2, unit: "ct/kWh", points: true }, { label: "Volume", colour: "--c-battery", bars: true, fill: 0.5, scale: "wh", digits: 2, unit: "kWh" }] });
  const priceHole = h("div", {});
  const trades = table([
    { title: "Delivery", show: (row) => slot(row.time_ns), sort: (row) => row.time_ns },
    { title: "Buyer", show: (row) => row.buyer_id ?? h("span", { class: "soft" }, "another tenant") }, { title: "Seller", show: (row) => row.seller_id ?? h("span", { class: "soft" }, "another tenant") },
    { title: "Energy", right: true, show: (row) => energy(row.quantity_wh), sort: (row) => row.quantity_wh }, { title: "Price", right: true, show: (row) => price(row.price_ticks), sort: (row) => row.price_ticks },
  ], { caption: "Last trades", none: ["No trade yet", "They come when one site has surplus and another needs it."] });
  const orders = table([
    { title: "Delivery", show: (row) => slot(row.slot_start_ns), sort: (row) => row.slot_start_ns }, { name: "participant_id", title: "Site", sort: (row) => row.participant_id }, { name: "side", title: "Side" },
    { title: "Energy", right: true, show: (row) => energy(row.quantity_wh) }, { title: "Limit", right: true, show: (row) => price(row.price_ticks) }, { title: "Filled", right: true, show: (row) => energy(row.filled_wh) }, { title: "State", show: (row) => row.status.replace("_", " ") },
    ...(may("trade") ? [{ title: "", show: (row) => (["accepted", "partially_filled"].includes(row.status) ? h("button", { class: "button small", onclick: () => cancel(row) }, "Cancel") : "") }] : []),
  ], { caption: "Own orders", none: ["No order stands", "Gateways order by themselves; the button above places one by hand."] });
  const positions = table([
    { name: "participant", title: "Site", sort: (row) => row.participant }, { title: "Imported", right: true, show: (row) => energy(row.imported_wh), sort: (row) => row.imported_wh }, { title: "Exported", right: true, show: (row) => energy(row.exported_wh), sort: (row) => row.exported_wh },
    { title: "Trades", right: true, show: (row) => number(row.trades) }, { title: "Paid for trades", right: true, show: (row) => money(row.paid_trades) }, { title: "Paid to retailer", right: true, show: (row) => money(row.paid_retail) },
    { title: "Flexibility", right: true, show: (row) => money(row.received_flexibility) }, { title: "Cost", right: true, show: (row) => money(row.cost), sort: (row) => row.cost },
    { title: "Exposure of credit", right: true, show: (row) => `${money(row.exposure + row.owed)} of ${number(row.credit_limit, 0)}`, sort: (row) => row.exposure + row.owed },
    { title: "", show: (row) => [row.suspended && pill("suspended", "bad"), download("Statement", `sites/${encodeURIComponent(row.participant)}/settlements`, { format: "csv", limit: 1000 })] },
  ], { caption: "Positions", none: ["Nobody takes part", "Participants stand in the cloud's file."] });
  const [tradeCard, orderCard, positionCard, productCard] = [h("div", {}), h("div", {}), h("div", {}), h("div", {})];
  main.append(
    h("div", { class: "cols" }, card("Open products", { span: 7, note: "choose one for its depth" }, productCard), card("Depth", { span: 5 }, book)),
    card("Price of each slot", { tools: [download("CSV", "market/slots", { format: "csv", limit: 1000 }), download("Parquet", "market/slots", { format: "parquet", limit: 1000 })] }, prices.element, priceHole),
    card("Own orders", {}, orderCard),
    h("div", { class: "cols" }, card("Positions, exposure, statements", { span: 12 }, positionCard)),
    card("Last trades", { tools: [download("CSV", "market/trades", { format: "csv", limit: 1000 })] }, tradeCard));

  productCard.append(list.element);
  context.on("market", "market", (data) => {
    products = data.products.map((one) => ({ ...one, id: one.slot_start_ns }));
    list.set(products);
    depth();
    numbers.set("state", data.halted ? "halted" : "open", data.halted || "");
    halt.hidden = Boolean(data.halted);
    resume.hidden = !data.halted;
  });

  function depth() {
    const found = products.find((one) => one.slot_start_ns === chosen) || products[0];
    if (!found) return replace(book, empty("No book", "There is no open product."));
    const told = h("p", { class: "small soft" }, `Delivery ${slot(found.slot_start_ns)}`);
    if (!found.bids.length && !found.asks.length) return replace(book, told, empty(found.status === "call" ? "The call's book is sealed" : "The book is empty", found.status === "call" ? "Orders are collected; prices show when the gate closes." : "Nobody offers or bids now."));
    const most = Math.max(...[...found.bids, ...found.asks].map((one) => one.quantity_wh));
    const side = (levels, name, colour) => h("div", { class: "span-6" }, h("h3", {}, name), levels.map((one) => h("div", { class: "depth" }, h("span", { class: "num" }, price(one.price_ticks)), h("span", { class: "num right" }, energy(one.quantity_wh)), (() => { const bar = h("i", {}); bar.style.width = `${(100 * one.quantity_wh) / most}%`; bar.style.background = `var(${colour})`; return bar; })())));
    replace(book, told, h("div", { class: "cols" }, side(found.bids, "Bids", "--c-battery"), side(found.asks, "Offers", "--c-pv")));
  }

  const renew = keep(orderCard, async () => {
    orders.set((await api.get("market/orders", { limit: 300 })).map((one) => ({ ...one, id: `${one.slot_start_ns}-${one.participant_id}-${one.client_order_id}` })));
    return orders.element.isConnected ? null : orders.element;
  }, 5);
  keep(positionCard, async () => {
    positions.set((await api.get("market/positions")).map((one) => ({ ...one, id: one.participant })));
    return positions.element.isConnected ? null : positions.element;
  }, 10);
  keep(tradeCard, async () => {
    trades.set((await api.get("market/trades", { limit: 60 })).rows);
    return trades.element.isConnected ? null : trades.element;
  }, 10);
  keep(priceHole, async () => {
    const [summary, page] = await Promise.all([api.get("market"), api.get("market/slots", { limit: 192 })]);
    numbers.set("state", summary.halted ? "halted" : "open", summary.halted || summary.area);
    numbers.set("trades", number(summary.trades));
    numbers.set("volume", energy(summary.volume_wh));
    numbers.set("cleared", number(summary.slots_cleared));
    numbers.set("settled", number(summary.slots_settled));
    numbers.set("ledger", units(summary.ledger_sum_units), summary.ledger_sum_units === 0 ? "sums to zero, as it must" : "does not sum to zero!");
    halt.hidden = Boolean(summary.halted);
    resume.hidden = !summary.halted;
    const rows = page.rows.reverse();
    prices.set([rows.map((one) => one.time_ns / 1e9), rows.map((one) => (known(one.price_ticks) ? one.price_ticks / 100 : null)), rows.map((one) => one.volume_wh / 1000)]);
    const last = rows.filter((one) => known(one.price_ticks)).at(-1);
    prices.describe(last ? `Last price ${price(last.price_ticks)} for ${slot(last.time_ns)}` : "No price yet");
    prices.element.hidden = !rows.length;
    return rows.length ? h("span", {}) : empty("No slot has been cleared yet", `The first gate closes ${Math.round(summary.gate_close_s / 60)} min before its slot.`);
  }, 10);

  async function place() {
    const [sites, summary, health] = await Promise.all([api.get("market/positions"), api.get("market"), api.get("health")]);
    const length = summary.slot_s * 1e9;
    const first = Math.ceil((health.time_ns + summary.gate_close_s * 1e9) / length) * length + length;
    const starts = Array.from({ length: 16 }, (_, index) => first + index * length).filter((one) => one - health.time_ns < summary.gate_open_s * 1e9);
    const values = await question({
      title: "Place an order", action: "Place",
      text: "A limit order for one delivery slot. The market's own limits hold for it.",
      fields: [
        { name: "site_id", label: "Site", options: sites.map((one) => one.participant) }, { name: "slot_start_ns", label: `Delivery (gate closes ${summary.gate_close_s / 60} min before)`, options: starts.map((one) => ({ value: String(one), label: slot(one) })) },
        { name: "side", label: "Side", options: ["buy", "sell"] }, { name: "quantity_wh", label: "Energy, Wh", type: "number", value: 500, min: 1, max: 10000000, step: 1 },
        { name: "cents", label: "Limit, ct/kWh", type: "number", value: 15, min: -10000, max: 10000, step: 0.01 },
      ],
    });
    if (!values) return;
    try {
      const [done] = await api.post("market/orders", { site_id: values.site_id, slot_start_ns: Number(values.slot_start_ns), orders: [{ client_order_id: `hand-${Date.now().toString(36)}`, side: values.side, quantity_wh: values.quantity_wh, price_ticks: Math.round(values.cents * 100) }] });
      toast(done.status === "rejected" ? `Refused: ${done.reason.replaceAll("_", " ")}${done.detail ? `, ${done.detail}` : ""}` : `The order is ${done.status.replace("_", " ")}.`, { bad: done.status === "rejected" });
      renew();
    } catch (error) {
      toast(error.message, { bad: true });
    }
  }
  async function cancel(row) {
    try {
      await api.post("market/orders/cancel", { site_id: row.participant_id, slot_start_ns: row.slot_start_ns, client_order_ids: [row.client_order_id] });
      toast("The order is taken back.");
      renew();
    } catch (error) {
      toast(error.message, { bad: true });
    }
  }
}

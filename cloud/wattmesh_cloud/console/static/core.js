// What all pages share: elements, requests, live events, numbers and times as people read them.

export const boot = JSON.parse(document.getElementById("boot").textContent);
export const me = boot.me;

export function may(permission, { host = false } = {}) {
  return me.permissions.includes(permission) && (!host || me.host);
}

// -- elements: text is text, never markup

export function h(tag, attributes, ...children) {
  const element = document.createElement(tag);
  fillIn(element, attributes);
  append(element, children);
  return element;
}

export function svg(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
  append(element, children);
  return element;
}

function fillIn(element, attributes) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(element.style, value);
    else if (name === "value" || name === "checked") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
}

function append(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : String(child));
  }
}

export function replace(element, ...children) {
  element.replaceChildren();
  append(element, children);
  return element;
}

export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function icon(name) {
  const use = svg("use", {});
  use.setAttribute("href", `${boot.static}/icons.svg#${name}`);
  return svg("svg", { "aria-hidden": "true", width: "18", height: "18" }, use);
}

// -- requests

export class ApiError extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

async function ask(method, path, { query, body } = {}) {
  const url = new URL(`/api/v1/${path}`, location.origin);
  for (const [name, value] of Object.entries(query || {})) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one !== undefined && one !== null) url.searchParams.append(name, one);
    }
  }
  const headers = { Accept: "application/json" };
  if (method !== "GET") headers["X-CSRF-Token"] = me.csrf || "";
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(url, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch {
    throw new ApiError(0, "The cloud does not answer. This page tries again by itself.");
  }
  if (answer.status === 401) {
    sessionOver();
    throw new ApiError(401, "Your session is over. Log in again; nothing was done.");
  }
  const text = await answer.text();
  let data = null;
  try {
    data = text ? JSON.parse(text) : null;
  } catch {
    throw new ApiError(answer.status, `The cloud's answer cannot be read (${answer.status}).`);
  }
  if (!answer.ok) throw new ApiError(answer.status, (data && data.detail) || `Refused (${answer.status}).`);
  return data;
}

export const api = {
  get: (path, query) => ask("GET", path, { query }),
  post: (path, body) => ask("POST", path, { body: body === undefined ? {} : body }),
  patch: (path, body) => ask("PATCH", path, { body }),
  remove: (path) => ask("DELETE", path),
};

export function newKey() {
  return `c-${Date.now().toString(36)}-${crypto.getRandomValues(new Uint32Array(2)).join("")}`;
}

// -- connection

let over = false;
const banner = () => document.getElementById("banner");

export function sessionOver() {
  if (over) return;
  over = true;
  const next = encodeURIComponent(location.pathname);
  banner().className = "banner bad";
  replace(banner(), "Your session is over. ", h("a", { href: `/login?next=${next}` }, "Log in again"), "; nothing was lost.");
  banner().hidden = false;
}

function connection(state) {
  const pill = document.getElementById("connection");
  pill.className = `pill ${state === "live" ? "good" : state === "lost" ? "bad" : "quiet"}`;
  setText(pill, state === "live" ? "live" : state === "lost" ? "connection lost" : "connecting");
  if (over) return;
  banner().hidden = state !== "lost";
  if (state === "lost") {
    banner().className = "banner";
    setText(banner(), "The cloud does not answer. What you see may be old; the page goes on by itself when it is back.");
  }
}

const waiting = new Set();
/** Called each time the connection has come back. */
export function whenBack(work) {
  waiting.add(work);
}

/** Live events; `topics` as the API names them, `handlers` by event name. Comes back by itself. */
export function live(topics, handlers) {
  const url = `/api/v1/live?${topics.map((one) => `topic=${encodeURIComponent(one)}`).join("&")}`;
  let source = null;
  let lost = false;
  let heard = Date.now();
  const open = () => {
    source = new EventSource(url);
    source.onopen = () => {
      heard = Date.now();
      connection("live");
      if (lost) for (const work of waiting) work();
      lost = false;
    };
    source.onerror = () => {
      lost = true;
      if (!over) connection("lost");
      if (source.readyState === EventSource.CLOSED && !over) {
        setTimeout(async () => {
          try {
            await api.get("me");
          } catch { /* told by the banner; the next try comes */ }
          if (!over) open();
        }, 2000);
      }
    };
    for (const [name, handler] of Object.entries(handlers)) {
      source.addEventListener(name, (event) => {
        heard = Date.now();
        handler(JSON.parse(event.data));
      });
    }
    source.addEventListener("expired", () => {
      source.close();
      sessionOver();
    });
  };
  open();
  setInterval(() => {
    if (!over && Date.now() - heard > 40000 && source.readyState !== EventSource.CONNECTING) {
      source.close();
      lost = true;
      connection("lost");
      heard = Date.now();
      open();
    }
  }, 5000);
}

// -- sections that fetch: a message in place, and again by itself

/** Fill `element` by `work` now, every `seconds`, and when the connection is back. What was there stays while it is renewed. */
export function keep(element, work, seconds) {
  let drawn = false;
  let busy = false;
  if (!element.childNodes.length) replace(element, h("div", { class: "skeleton" }, h("span", { class: "soft small" }, "Loading")));
  const run = async () => {
    if (busy || over) return;
    busy = true;
    try {
      const made = await work();
      if (made) replace(element, made);
      else if (!drawn) element.querySelector(":scope > .skeleton, :scope > .problem")?.remove();
      drawn = true;
    } catch (error) {
      if (!(error instanceof ApiError)) console.error(error);
      if (!drawn) replace(element, problem(error.message, run));
    } finally {
      busy = false;
    }
  };
  if (seconds) setInterval(() => document.visibilityState === "visible" && run(), seconds * 1000);
  whenBack(run);
  const first = run();
  run.first = first;
  return run;
}

export function problem(text, again) {
  return h("div", { class: "problem", role: "alert" }, text,
    again && h("button", { class: "button small", onclick: again }, "Try again"));
}

export function empty(title, text, ...more) {
  return h("div", { class: "empty" }, h("strong", {}, title), text, ...more);
}

// -- telling and asking

export function toast(text, { bad = false } = {}) {
  const one = h("div", { class: bad ? "toast bad" : "toast" }, text);
  document.getElementById("toasts").append(one);
  setTimeout(() => one.remove(), bad ? 9000 : 5000);
}

/** A dialog with fields; gives their values, or null. */
export function question({ title, text, fields = [], action = "Go on", danger = false }) {
  return new Promise((resolve) => {
    const inputs = {};
    const error = h("p", { class: "problem", role: "alert", hidden: true });
    const form = h("form", { method: "dialog" },
      fields.map((field) => {
        const id = `q-${field.name}`;
        const input = field.options
          ? h("select", { id, name: field.name }, field.options.map((one) => h("option", { value: one.value ?? one }, one.label ?? one)))
          : h("input", { id, name: field.name, type: field.type || "text", value: field.value ?? "", required: field.required !== false, autocomplete: "off", min: field.min, max: field.max, step: field.step, minlength: field.minlength, maxlength: field.maxlength });
        if (field.value !== undefined) input.value = field.value;
        inputs[field.name] = input;
        return h("div", { class: "field" }, h("label", { for: id }, field.label), input, field.hint && h("span", { class: "hint" }, field.hint));
      }),
      error,
      h("div", { class: "actions" },
        h("button", { class: "button", type: "button", onclick: () => done(null) }, "Cancel"),
        h("button", { class: `button primary${danger ? " danger" : ""}`, type: "submit" }, action)));
    const dialog = h("dialog", { "aria-labelledby": "q-title" }, h("h2", { id: "q-title" }, title), text && h("p", { class: "soft" }, text), form);
    const done = (value) => {
      dialog.close();
      dialog.remove();
      resolve(value);
    };
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      done(Object.fromEntries(Object.entries(inputs).map(([name, input]) => [name, input.type === "number" ? Number(input.value) : input.value])));
    });
    dialog.addEventListener("cancel", (event) => {
      event.preventDefault();
      done(null);
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** Ask for a command; where it needs a second step, ask the person to type its word. Gives the command, or null. */
export async function command({ kind, title, text, fields = [], danger = false, build = (values) => values }) {
  const values = await question({
    title, text, danger, action: title,
    fields: [...fields, { name: "reason", label: "Reason, for the log", minlength: 3, maxlength: 200 }],
  });
  if (!values) return null;
  const { reason, ...rest } = values;
  try {
    let made = await api.post("commands", { kind, arguments: build(rest), reason, idempotency_key: newKey() });
    if (made.state === "waiting" && made.steps === "confirm") made = await confirmed(made, title, danger);
    if (made) toast(made.state === "done" ? made.result : made.state === "waiting" ? "It waits for somebody else's approval, below on the agents' page." : `${made.state}: ${made.result}`, { bad: ["failed", "refused"].includes(made.state) });
    return made;
  } catch (error) {
    toast(error.message, { bad: true });
    return null;
  }
}

export async function confirmed(made, title, danger = true) {
  const typed = await question({
    title: `Confirm: ${title}`, danger, action: "Confirm",
    text: `This is the second step. Type ${made.confirm} within ${made.expires_in_s < 600 ? `${Math.round(made.expires_in_s)} s` : `${Math.floor(made.expires_in_s / 60)} min`} to do it.`,
    fields: [{ name: "confirm", label: `Type ${made.confirm}` }],
  });
  if (!typed) return made.steps === "approve" ? null : api.post(`commands/${made.id}/reject`, {});
  return api.post(`commands/${made.id}/confirm`, { confirm: typed.confirm.trim() });
}

// -- numbers, as people read them

const minus = (text) => text.replace("-", "−");
export const known = (value) => value !== null && value !== undefined && !Number.isNaN(value);

export function number(value, digits = 0, unit = "") {
  if (!known(value)) return "–";
  return minus(value.toLocaleString("en-GB", { minimumFractionDigits: digits, maximumFractionDigits: digits })) + (unit ? ` ${unit}` : "");
}

export function power(watts) {
  if (!known(watts)) return "–";
  const size = Math.abs(watts);
  if (size >= 999500) return number(watts / 1e6, 2, "MW");
  return size >= 999.5 ? number(watts / 1000, 2, "kW") : number(Math.round(watts) + 0, 0, "W");
}

export function energy(wattHours) {
  if (!known(wattHours)) return "–";
  const size = Math.abs(wattHours);
  if (size >= 999500) return number(wattHours / 1e6, 2, "MWh");
  return size >= 999.5 ? number(wattHours / 1000, 2, "kWh") : number(wattHours, 0, "Wh");
}

export const price = (ticks) => number(known(ticks) ? ticks / 100 : null, 2, "ct/kWh");
export const money = (amount) => number(amount, 2, boot.currency);
export const units = (value) => money(known(value) ? value / 1e7 : null);

export function flowText(key, watts) {
  if (!known(watts)) return "–";
  const size = power(Math.abs(watts));
  if (Math.abs(watts) < 1) return "0 W";
  if (key === "grid_w") return `${watts > 0 ? "import" : "export"} ${size}`;
  if (key === "battery_w") return `${watts > 0 ? "charging" : "discharging"} ${size}`;
  return size;
}

// -- times: the fleet's time zone, always named

let zone = localStorage.getItem("wm-zone") === "utc" ? "UTC" : boot.time_zone;
export const timeZone = () => zone;
export const zoneName = () => {
  const offset = /^Etc\/GMT([+-])(\d+)$/.exec(zone);
  return offset ? `UTC${offset[1] === "+" ? "−" : "+"}${offset[2]}` : zone;
};
export function setZone(utc) {
  localStorage.setItem("wm-zone", utc ? "utc" : "fleet");
  location.reload();
}

const formats = new Map();
function format(name, options) {
  if (!formats.has(name)) formats.set(name, new Intl.DateTimeFormat("en-GB", { timeZone: zone, hourCycle: "h23", ...options }));
  return formats.get(name);
}
const at = (ns) => new Date(Number(ns) / 1e6);
export const time = (ns) => (known(ns) ? format("time", { hour: "2-digit", minute: "2-digit" }).format(at(ns)) : "–");
export const seconds = (ns) => (known(ns) ? format("seconds", { hour: "2-digit", minute: "2-digit", second: "2-digit" }).format(at(ns)) : "–");
export const moment = (ns) => (known(ns) ? format("moment", { weekday: "short", day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" }).format(at(ns)) : "–");
export const fullMoment = (ns) => (known(ns) ? format("full", { weekday: "short", day: "numeric", month: "short", year: "numeric", hour: "2-digit", minute: "2-digit", second: "2-digit" }).format(at(ns)) : "–");
export const day = (ns) => format("day", { year: "numeric", month: "2-digit", day: "2-digit" }).format(at(ns)).split("/").reverse().join("-");
export const slot = (ns) => `${moment(ns)}–${time(Number(ns) + boot.slot_s * 1e9)}`;

/** A moment as an element that machines can read, too. */
export function when(ns, show = moment) {
  return known(ns) ? h("time", { datetime: at(ns).toISOString(), title: at(ns).toISOString() }, show(ns)) : "–";
}

// -- blocks

export function head(title, { crumb, tools = [] } = {}) {
  return h("div", { class: "head" }, h("div", {}, crumb && h("div", { class: "crumb" }, crumb), h("h1", {}, title)), h("div", { class: "tools" }, tools));
}

export function card(title, { note, tools, span } = {}, ...children) {
  const id = `h-${title.toLowerCase().replace(/[^a-z0-9]+/g, "-")}`;
  return h("section", { class: `card${span ? ` span-${span}` : ""}`, "aria-labelledby": id },
    h("header", {}, h("h2", { id }, title), note && h("span", { class: "small" }, note), tools && h("div", { class: "tools" }, tools)), ...children);
}

export function tiles(names) {
  const found = {};
  const element = h("div", { class: "tiles" }, Object.entries(names).map(([key, title]) => {
    const value = h("div", { class: "value" }, "–");
    const note = h("div", { class: "note" });
    found[key] = { value, note };
    return h("div", { class: "tile" }, h("div", { class: "name" }, title), value, note);
  }));
  return { element, set: (key, text, note = "") => { setText(found[key].value, text); setText(found[key].note, note); } };
}

const STATES = { alarm: ["bad", "alarm"], away: ["quiet", "away"], stale: ["warn", "old data"], warning: ["warn", "warning"], ok: ["good", "fine"] };
export function statePill(state) {
  const [kind, text] = STATES[state] || ["quiet", state];
  return h("span", { class: `pill ${kind}` }, text);
}
export const pill = (text, kind = "quiet") => h("span", { class: `pill ${kind}` }, text);

/** A table; `columns` are {name, title, right, show}. Headers sort where `sort` gives a value. */
export function table(columns, { caption, none = ["Nothing here yet", ""], onpick } = {}) {
  let rows = [];
  let order = null;
  const body = h("tbody", {});
  const heads = columns.map((column) => {
    const cell = h("th", { scope: "col", class: column.right ? "right" : null });
    if (column.sort) {
      cell.append(h("button", { type: "button", title: "Sort", onclick: () => {
        order = order && order.column === column ? { column, down: !order.down } : { column, down: false };
        heads.forEach((one) => one.removeAttribute("aria-sort"));
        cell.setAttribute("aria-sort", order.down ? "descending" : "ascending");
        draw();
      } }, column.title));
    } else append(cell, [column.title || h("span", { class: "visually-hidden" }, "Actions")]);
    return cell;
  });
  const grid = h("table", {}, caption && h("caption", { class: "visually-hidden" }, caption), h("thead", {}, h("tr", {}, heads)), body);
  const hole = h("div", {});
  const element = h("div", {}, h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption || "Table" }, grid), hole);
  const draw = () => {
    const sorted = order ? [...rows].sort((a, b) => {
      const [x, y] = [order.column.sort(a), order.column.sort(b)];
      return (x > y ? 1 : x < y ? -1 : 0) * (order.down ? -1 : 1);
    }) : rows;
    const focused = document.activeElement?.closest?.("tr")?.dataset.key;
    replace(body, sorted.map((row, index) => h("tr", {
      class: onpick ? "pick" : null, tabindex: onpick ? "0" : null, "data-key": row.id ?? index,
      onclick: onpick && (() => onpick(row)), onkeydown: onpick && ((event) => event.key === "Enter" && onpick(row)),
    }, columns.map((column) => h("td", { class: column.right ? "right" : null }, column.show ? column.show(row) : row[column.name] ?? "–")))));
    if (focused !== undefined && onpick) body.querySelector(`tr[data-key="${CSS.escape(focused)}"]`)?.focus();
    grid.hidden = !rows.length;
    replace(hole, rows.length ? null : empty(...none));
  };
  draw();
  return { element, set: (given) => { rows = given; draw(); } };
}

export function segments(label, choices, chosen, onchoose) {
  const buttons = choices.map(([value, text]) => h("button", { type: "button", "aria-pressed": String(value === chosen), onclick: () => {
    buttons.forEach((one, index) => one.setAttribute("aria-pressed", String(choices[index][0] === value)));
    onchoose(value);
  } }, text));
  return h("div", { class: "segments", role: "group", "aria-label": label }, buttons);
}

export function field(label, input, hint) {
  const id = input.id || (input.id = `f-${label.toLowerCase().replace(/[^a-z0-9]+/g, "-")}`);
  return h("div", { class: "field" }, h("label", { for: id }, label), input, hint && h("span", { class: "hint" }, hint));
}

export function download(text, path, query) {
  const url = new URL(`/api/v1/${path}`, location.origin);
  for (const [name, value] of Object.entries(query || {})) for (const one of [value].flat()) url.searchParams.append(name, one);
  return h("a", { class: "button small", href: url.pathname + url.search, download: "" }, text);
}

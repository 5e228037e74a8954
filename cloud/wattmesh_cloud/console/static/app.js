// Starts a page: frame, clock, theme, then the page's own module.
import { api, boot, fullMoment, h, live, moment, problem, replace, setText, setZone, timeZone, toast, zoneName } from "./core.js";

const root = document.documentElement;
const main = document.getElementById("main");

document.getElementById("theme").addEventListener("click", () => {
  const dark = root.dataset.theme === "dark" || (root.dataset.theme !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
  root.dataset.theme = dark ? "light" : "dark";
  localStorage.setItem("wm-theme", root.dataset.theme);
  dispatchEvent(new Event("wm-theme"));
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => dispatchEvent(new Event("wm-theme")));

const menu = document.getElementById("menu");
const nav = document.getElementById("nav");
const openMenu = (open) => {
  nav.classList.toggle("open", open);
  menu.setAttribute("aria-expanded", String(open));
};
menu.addEventListener("click", () => openMenu(!nav.classList.contains("open")));
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  openMenu(false);
  document.querySelector(".person")?.removeAttribute("open");
});
document.addEventListener("click", (event) => {
  const person = document.querySelector(".person");
  if (person?.open && !person.contains(event.target)) person.open = false;
  if (nav.classList.contains("open") && !nav.contains(event.target) && !menu.contains(event.target)) openMenu(false);
});
document.getElementById("logout")?.addEventListener("click", async () => {
  try {
    await api.post("logout", {});
    location.href = "/login";
  } catch (error) {
    toast(error.message, { bad: true });
  }
});
const personMenu = document.querySelector(".person-menu");
personMenu.append(h("p", {}, h("button", { class: "button small", onclick: () => setZone(timeZone() !== "UTC") },
  timeZone() === "UTC" ? `Times in ${boot.time_zone}` : "Times in UTC")));

const clock = document.getElementById("clock");
const narrow = matchMedia("(max-width: 860px)");
/** The fleet's time; in a simulation it is not this machine's. */
export function showClock(ns) {
  setText(clock, narrow.matches ? moment(ns) : `${fullMoment(ns)} ${zoneName()}`);
  clock.setAttribute("datetime", new Date(ns / 1e6).toISOString());
}

const listeners = {};
const topics = new Set(["fleet"]);
const context = {
  on(topic, name, handler) {
    topics.add(topic);
    (listeners[name] ||= []).push(handler);
  },
};

try {
  const page = await import(`./pages/${boot.page}.js`);
  await page.default(main, context);
} catch (error) {
  console.error(error);
  replace(main, problem(`This page could not be built: ${error.message}`, () => location.reload()));
}
const handlers = {};
for (const [name, all] of Object.entries(listeners)) handlers[name] = (data) => all.forEach((one) => one(data));
const inner = handlers.fleet;
handlers.fleet = (data) => {
  showClock(data.time_ns);
  inner?.(data);
};
live([...topics], handlers);
document.body.dataset.ready = "true";

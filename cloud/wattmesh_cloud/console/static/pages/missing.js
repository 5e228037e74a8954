import { card, h } from "../core.js";

export default function (main) {
  main.append(card("There is no such page", {}, h("p", {}, "The address may be old or mistyped. The pages are listed beside."), h("a", { class: "button", href: "/" }, "To the fleet")));
}

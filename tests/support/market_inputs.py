"""Inputs for a market, many of them wrong on purpose."""

import random

from wattmesh_a2a.clock import NS_PER_S
from wattmesh_a2a.market import Order, Side

SLOT = 900 * NS_PER_S
T = 2_000 * SLOT
OPEN = T - 3600 * NS_PER_S


def random_inputs(seed, count=400):
    """Calls as (method, arguments), many of them wrong on purpose."""
    rng = random.Random(seed)
    people = ["ann", "bob", "cem"] * 4 + ["eve"]
    now = OPEN
    for number in range(count):
        now += rng.randrange(0, 40) * NS_PER_S
        slot, who = T + rng.randrange(0, 8) * SLOT, rng.choice(people)
        match rng.choice(["submit"] * 8 + ["clear"] * 2 + ["settle"] * 3 + ["flexibility", "halt"] + ["resume"] * 3):
            case "submit":
                orders = [
                    Order(
                        client_order_id=f"o{number}-{index}",
                        participant_id=who,
                        area_id="area-1",
                        slot_start_ns=slot,
                        side=rng.choice(list(Side)),
                        quantity_wh=rng.randrange(0, 500),
                        price_ticks=rng.randrange(-500, 6000),
                    )
                    for index in range(rng.choice([0, 1, 2, 2, 2, 3, 3]))
                ]
                yield "submit", (who, slot, orders, now), {}
            case "clear":
                yield "clear_due", (now,), {}
            case "settle":
                yield "settle", (slot, who, rng.randrange(-900, 2000)), {"substituted": rng.random() < 0.3}
            case "flexibility":
                yield "pay_flexibility", (f"dr-{rng.randrange(3)}", who, rng.randrange(0, 9999)), {}
            case "halt":
                yield "halt", ("test",), {}
            case "resume":
                yield "resume", (), {}

"""The call auction against a second, slow opinion, and the promises its docstring makes."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from wattmesh_a2a.market import Order, Side
from wattmesh_cloud.market.mechanism import UniformPriceCallAuction

AUCTION = UniformPriceCallAuction()
PEOPLE = ("ann", "bob", "cem", "dot")


@st.composite
def books(draw):
    rows = draw(
        st.lists(
            st.tuples(st.sampled_from(PEOPLE), st.sampled_from(Side), st.integers(1, 40), st.integers(-5, 12)),
            max_size=14,
        )
    )
    return [
        Order(
            client_order_id=f"o{index:02}",
            participant_id=who,
            area_id="area-1",
            slot_start_ns=0,
            side=side,
            quantity_wh=quantity,
            price_ticks=price,
        )
        for index, (who, side, quantity, price) in enumerate(rows)
    ]


def clear(orders):
    return AUCTION.clear("area-1", 0, orders)


def fills_of(clearing):
    fills: dict[str, int] = {}
    for trade in clearing.trades:
        for name in (trade.buy_order_id, trade.sell_order_id):
            fills[name] = fills.get(name, 0) + trade.quantity_wh
    return fills


def eligible(orders):
    """Without offers that would cross their owner's own best bid: the stated rule against trades with oneself."""
    best = {}
    for order in orders:
        if order.side is Side.BUY:
            best[order.participant_id] = max(order.price_ticks, best.get(order.participant_id, order.price_ticks))
    return [
        order
        for order in orders
        if order.side is Side.BUY or order.participant_id not in best or order.price_ticks > best[order.participant_id]
    ]


def most_volume(orders):
    """By trying every price there can be."""
    volumes = [0]
    for price in range(-6, 14):
        demand = sum(o.quantity_wh for o in orders if o.side is Side.BUY and o.price_ticks >= price)
        supply = sum(o.quantity_wh for o in orders if o.side is Side.SELL and o.price_ticks <= price)
        volumes.append(min(demand, supply))
    return max(volumes)


@settings(max_examples=150, deadline=None)
@given(books())
def test_as_much_as_any_single_price_can_trade(orders):
    clearing = clear(orders)
    assert clearing.volume_wh == most_volume(eligible(orders)) == sum(t.quantity_wh for t in clearing.trades)
    assert (clearing.price_ticks is None) == (clearing.volume_wh == 0)


@settings(max_examples=150, deadline=None)
@given(books())
def test_nobody_trades_more_than_ordered_nor_at_a_worse_price_nor_with_itself(orders):
    clearing = clear(orders)
    known = {order.client_order_id: order for order in orders}
    for name, fill in fills_of(clearing).items():
        assert 0 < fill <= known[name].quantity_wh
    welfare = 0
    for trade in clearing.trades:
        buy, sell = known[trade.buy_order_id], known[trade.sell_order_id]
        assert (trade.buyer_id, trade.seller_id) == (buy.participant_id, sell.participant_id)
        assert trade.buyer_id != trade.seller_id
        assert sell.price_ticks <= trade.price_ticks == clearing.price_ticks <= buy.price_ticks
        assert trade.quantity_wh > 0
        welfare += trade.quantity_wh * (buy.price_ticks - sell.price_ticks)
    assert welfare == clearing.welfare_units
    assert len({trade.id for trade in clearing.trades}) == len(clearing.trades)


@settings(max_examples=150, deadline=None)
@given(books())
def test_no_better_priced_order_goes_short_while_a_worse_one_trades(orders):
    fills = fills_of(clear(orders))
    for side, sign in ((Side.BUY, 1), (Side.SELL, -1)):
        one_side = [order for order in eligible(orders) if order.side is side]
        for better in one_side:
            for worse in one_side:
                if sign * better.price_ticks > sign * worse.price_ticks and fills.get(worse.client_order_id):
                    assert fills.get(better.client_order_id, 0) == better.quantity_wh


@settings(max_examples=150, deadline=None)
@given(books())
def test_orders_of_one_price_share_in_proportion_to_within_a_watt_hour(orders):
    fills = fills_of(clear(orders))
    levels: dict[tuple[Side, int], list[Order]] = {}
    for order in eligible(orders):
        levels.setdefault((order.side, order.price_ticks), []).append(order)
    for level in levels.values():
        wanted = sum(order.quantity_wh for order in level)
        got = sum(fills.get(order.client_order_id, 0) for order in level)
        for order in level:
            assert abs(fills.get(order.client_order_id, 0) - order.quantity_wh * got / wanted) < 1


@settings(max_examples=150, deadline=None)
@given(books(), st.integers(0, 1000))
def test_the_order_of_arrival_changes_nothing(orders, seed):
    mixed = list(orders)
    random.Random(seed).shuffle(mixed)
    assert clear(mixed) == clear(orders)


def test_a_book_by_hand(make_order):
    clearing = clear(
        [
            make_order("ann", "buy", 100, 30, name="b1"),
            make_order("bob", "buy", 60, 20, name="b2"),
            make_order("cem", "sell", 120, 10, name="s1"),
            make_order("dot", "sell", 50, 40, name="s2"),
        ]
    )
    # 120 Wh trade at 10 to 20; below 20 the second bid would be better than the price and go short, so 20 it is.
    assert (clearing.price_ticks, clearing.volume_wh) == (20, 120)
    assert fills_of(clearing) == {"b1": 100, "b2": 20, "s1": 120}
    assert clearing.welfare_units == 100 * (30 - 10) + 20 * (20 - 10)


def test_odd_watt_hours_go_to_the_largest_remainder_and_ties_to_the_first_id(make_order):
    bids = [make_order(who, "buy", 10, 30, name=f"b-{who}") for who in ("ann", "bob", "cem")]
    fills = fills_of(clear([*bids, make_order("dot", "sell", 10, 10, name="s")]))
    assert fills == {"b-ann": 4, "b-bob": 3, "b-cem": 3, "s": 10}


def test_own_bid_and_offer_do_not_meet(make_order):
    both = [make_order("ann", "buy", 50, 30), make_order("ann", "sell", 50, 10)]
    assert clear(both).trades == ()
    with_bob = clear([*both, make_order("bob", "sell", 20, 20)])
    assert [(trade.buyer_id, trade.seller_id, trade.quantity_wh) for trade in with_bob.trades] == [("ann", "bob", 20)]


def test_prices_below_zero_clear_too(make_order):
    clearing = clear([make_order("ann", "buy", 10, -1), make_order("bob", "sell", 10, -4)])
    assert (clearing.price_ticks, clearing.volume_wh) == (-3, 10)


def test_a_book_that_does_not_cross_trades_nothing(make_order):
    clearing = clear([make_order("ann", "buy", 10, 10), make_order("bob", "sell", 10, 11)])
    assert (clearing.price_ticks, clearing.volume_wh, clearing.trades) == (None, 0, ())

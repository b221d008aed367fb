"""What customers of the simulated support desk want, and how it is solved."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

__all__ = ["Call", "Task", "make_task"]

_ITEMS = ("kettle", "desk lamp", "rain jacket", "tent", "camping stove", "pair of headphones")
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call and what the shop answers."""

    tool: str
    arguments: dict[str, Any]
    result: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Task:
    """One ticket: what the customer asks, the calls that settle it, and two answers."""

    asked: str
    calls: tuple[Call, ...]
    right: str
    wrong: str


def make_task(datapoint: int) -> Task:
    """The ticket of a datapoint, always the same."""
    random = Random(f"ticket/{datapoint}")
    makers = (_late_parcel, _return, _late_return, _repair, _total, _charged_twice)
    return makers[datapoint % len(makers)](random)


def _order(random: Random) -> str:
    return f"A{random.randrange(10_000, 99_999)}"


def _late_parcel(random: Random) -> Task:
    order, item, day = _order(random), random.choice(_ITEMS), random.choice(_DAYS)
    parcel = f"NL{random.randrange(100_000, 999_999)}"
    return Task(
        f"I ordered a {item} last week and it is still not here. The order number is {order}.",
        (
            Call("lookup_order", {"order": order}, {"status": "shipped", "parcel": parcel}),
            Call("track_parcel", {"parcel": parcel}, {"last_seen": "Oslo", "expected": day}),
        ),
        f"Your {item} is on its way: the parcel {parcel} was last seen in Oslo and should reach"
        f" you on {day}.",
        "Your order has not been shipped yet. Please wait another week.",
    )


def _return(random: Random) -> Task:
    order, item, price = _order(random), random.choice(_ITEMS), random.randint(20, 180)
    days, label = random.randint(3, 25), f"R-{random.randrange(1000, 9999)}"
    return Task(
        f"I want to send back the {item} of order {order}. I have not opened it.",
        (
            Call("lookup_order", {"order": order}, {"delivered_days_ago": days, "price": price}),
            Call("check_policy", {"topic": "returns"}, {"days": 30, "condition": "unopened"}),
            Call("create_return", {"order": order}, {"label": label, "refund": price}),
        ),
        f"That is fine: it came {days} days ago, and unopened goods can go back for 30 days. Use"
        f" the label {label}; ${price} are refunded when it arrives.",
        f"I have refunded ${price} to your card. You may keep the {item}.",
    )


def _late_return(random: Random) -> Task:
    order, item, days = _order(random), random.choice(_ITEMS), random.randint(40, 90)
    return Task(
        f"The {item} from order {order} does not suit me. Can I have my money back?",
        (
            Call("lookup_order", {"order": order}, {"delivered_days_ago": days, "opened": True}),
            Call("check_policy", {"topic": "returns"}, {"days": 30, "condition": "unopened"}),
        ),
        f"I am sorry, I cannot refund it: it was delivered {days} days ago and has been opened, and"
        " returns are for 30 days and unopened goods.",
        "Of course. The money will be on your card within three days.",
    )


def _repair(random: Random) -> Task:
    item, day = random.choice(_ITEMS), random.choice(_DAYS)
    hour, code = random.randint(13, 17), f"K{random.randrange(100, 999)}"
    time = f"{hour}:30"
    return Task(
        f"My {item} is broken. Can I bring it in for repair on {day}, after noon if possible?",
        (
            Call("list_slots", {"day": day}, {"free": ["09:00", "10:30", time]}),
            Call("book_slot", {"day": day, "time": time}, {"booked": True, "code": code}),
        ),
        f"You are booked for {day} at {time}. Please show the code {code} at the counter.",
        f"You are booked for {day} at 09:00.",
    )


def _total(random: Random) -> Task:
    tents, lamps = random.randint(2, 5), random.randint(2, 5)
    tent, lamp, delivery = random.randint(90, 180), random.randint(15, 40), random.randint(8, 25)
    total = tents * tent + lamps * lamp + delivery
    return Task(
        f"What do {tents} tents and {lamps} desk lamps cost together, with delivery to Norway?",
        (
            Call("get_prices", {"items": ["tent", "desk lamp"]}, {"tent": tent, "desk lamp": lamp}),
            Call("quote_delivery", {"country": "NO"}, {"price": delivery}),
            Call(
                "calculate",
                {"expression": f"{tents} * {tent} + {lamps} * {lamp} + {delivery}"},
                {"value": total},
            ),
        ),
        f"Together they cost ${total}: {tents} tents at ${tent}, {lamps} lamps at ${lamp} and"
        f" ${delivery} for delivery.",
        f"Together they cost ${total - delivery}, delivery included.",
    )


def _charged_twice(random: Random) -> Task:
    order, price, day = _order(random), random.randint(20, 180), random.choice(_DAYS)
    payments = [
        {"amount": price, "state": "paid"},
        {"amount": price, "state": "reserved", "released_on": day},
    ]
    return Task(
        f"Why was I charged twice for order {order}?",
        (Call("list_payments", {"order": order}, {"payments": payments}),),
        f"You paid ${price} once. The second ${price} were only reserved, and your bank releases"
        f" them on {day}.",
        f"I see two payments and have refunded one of ${price}.",
    )

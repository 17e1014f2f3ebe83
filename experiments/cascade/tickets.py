"""Support tickets of our own making: what a customer wants is said beside what is settled.

Six wishes. In a third of the tickets words alone mislead: they name a second wish, which the customer has done with.
One label in fifty is wrong, as in real files.
"""

from __future__ import annotations

import random

SEED, TRAIN, HELD_BACK, DEV, SECOND, WRONG = 33, 4000, 2000, 1000, 0.35, 0.02
TOPICS = {
    "billing": ["the invoice", "a charge on my card", "the last payment", "the amount you took", "my bill", "the fee"],
    "delivery": ["the parcel", "my shipment", "the delivery date", "the courier", "the tracking number", "my order"],
    "account": ["my password", "the login", "my account", "the e-mail address", "two-step sign in", "my profile"],
    "returns": ["a return", "sending it back", "the refund", "an exchange", "the return label", "my money back"],
    "technical": ["the app", "an error message", "the update", "the device", "the connection", "the screen"],
    "praise": ["your team", "the quick help", "the service", "the new feature", "the packaging", "the quality"],
}
WISHES = {
    "billing": ["please explain {}", "I do not understand {}", "{} is wrong", "why is {} so high", "correct {}"],
    "delivery": ["where is {}", "{} is late", "nothing arrived, what about {}", "please check {}", "{} never came"],
    "account": ["I cannot use {}", "how do I change {}", "reset {} please", "{} is locked", "I forgot {}"],
    "returns": ["I would like {}", "how does {} work", "I ask for {}", "please arrange {}", "am I entitled to {}"],
    "technical": ["{} does not work", "{} stops all the time", "I have trouble with {}", "fix {}", "{} is broken"],
    "praise": ["thank you for {}", "I am happy with {}", "{} is great", "compliments for {}", "I love {}"],
}
OVER = ["settled by now: {}", "forget my earlier mail, {}", "last week I wrote: {}, that is done", "no more: {}"]
LINKS = ["{}; today {}", "{}, but {}", "{}. {}", "{} - {}"]
OPENINGS = ["", "", "hello, ", "hi there, ", "good morning, ", "dear support, ", "quick one: "]
CLOSINGS = ["", "", " thanks", " regards", " it is urgent", " order {}", " since {} days"]


def tickets(rows: int, draw: random.Random) -> list[tuple[str, str]]:
    """(text, label) rows; no text twice."""
    found: dict[str, str] = {}
    while len(found) < rows:
        wish = draw.choice(list(TOPICS))
        other = draw.choice([one for one in TOPICS if one != wish])
        wanted, done = (draw.choice(WISHES[one]).format(draw.choice(TOPICS[one])) for one in (wish, other))
        text = wanted
        if draw.random() < SECOND:
            parts = [draw.choice(OVER).format(done), wanted]
            text = draw.choice(LINKS).format(*(parts if draw.random() < 0.5 else reversed(parts)))
        text = draw.choice(OPENINGS) + text + draw.choice(CLOSINGS).format(draw.randint(2, 9999))
        found.setdefault(text, draw.choice(list(TOPICS)) if draw.random() < WRONG else wish)
    return list(found.items())

"""Reviews as Amazon Reviews 2023 has them, made up, in order of time: python3 reviews.py 1000000 million.jsonl.gz

The same number makes the same rows. For timing `adaptide import events` (docs/data.md). Needs nothing but Python.
"""

import gzip
import json
import random
import sys

USERS, ITEMS, FIRST_MS = 100_000, 50_000, 1_577_836_800_000  # 2020-01-01


def main(count: int, path: str) -> None:
    draw = random.Random(0)
    moment = FIRST_MS
    with gzip.open(path, "wt", encoding="utf-8", compresslevel=6) as file:
        for _ in range(count):
            moment += draw.randrange(1, 200_000)
            item = f"B{draw.randrange(ITEMS):09d}"
            review = {
                "rating": float(draw.randint(1, 5)),
                "title": "Good",
                "text": "It does what it says.",
                "images": [],
                "asin": item,
                "parent_asin": item,
                "user_id": f"A{draw.randrange(USERS):027d}",
                "timestamp": moment,
                "helpful_vote": draw.randrange(4),
                "verified_purchase": draw.random() < 0.9,
            }
            file.write(json.dumps(review) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])

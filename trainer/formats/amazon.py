"""Amazon Reviews 2023 (McAuley Lab): reviews and meta as JSON lines, and its ratings-only CSV files.

Of a review its item, user, time (milliseconds), rating, and in `properties` whether the purchase was verified and how
many found it helpful; its title and text stay in the file. An item is the product (`parent_asin`), not the variant.
"""

from collections.abc import Mapping
from typing import Any

from trainer.formats.rows import Shaped, Table

REVIEW = "review"
_REVIEW_COLUMNS = ("user_id", "item_id", "timestamp", "value", "properties")
_REVIEW_USED = ("user_id", "parent_asin", "asin", "timestamp", "rating", "verified_purchase", "helpful_vote")
_ITEM_COLUMNS = ("item_id", "title", "description", "categories", "brand")
_ITEM_USED = ("parent_asin", "title", "description", "features", "categories", "main_category", "store")


def events(source: Table) -> Table:
    source.require("user_id", "parent_asin" if "parent_asin" in source.columns else "asin", "timestamp")
    return Shaped(source, _REVIEW_COLUMNS, _REVIEW_USED, _review, REVIEW)


def items(source: Table) -> Table:
    source.require("parent_asin", "title")
    return Shaped(source, _ITEM_COLUMNS, _ITEM_USED, _item)


def _review(values: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: values[name] for name in ("verified_purchase", "helpful_vote") if values.get(name) not in (None, "")}
    return {
        "user_id": values["user_id"],
        "item_id": values.get("parent_asin") or values.get("asin"),
        "timestamp": values["timestamp"],
        "value": values.get("rating"),
        "properties": kept or None,
    }


def _item(values: Mapping[str, Any]) -> dict[str, Any]:
    main = values.get("main_category")
    return {
        "item_id": values["parent_asin"],
        "title": values.get("title"),
        "description": " ".join([*_texts(values.get("features")), *_texts(values.get("description"))]) or None,
        "categories": _texts(values.get("categories")) or ([main] if main else []),
        "brand": values.get("store"),
    }


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [value] if value else []
    return [part for part in value if isinstance(part, str)] if isinstance(value, list) else []

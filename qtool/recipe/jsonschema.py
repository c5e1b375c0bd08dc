"""The JSON schema of a recipe, for editors; made from the table that the loader checks by."""

from __future__ import annotations

from typing import Any

from qtool.recipe.document import RECIPE


def recipe_schema() -> dict[str, Any]:
    """JSON schema, draft 2020-12. What depends on several keys at once is left to ``qtool recipe check``."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "qtool recipe",
        **RECIPE.schema(),
    }

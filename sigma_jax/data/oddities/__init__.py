"""Properties of tables that are no error and may still surprise: notes for the data card.

A function returns a list of sentences, each with a count or an example and what to do.

| file | notes on |
|---|---|
| `ids.py` | ids: their forms, ids that differ in their form only, ids of two tables |
| `log.py` | the interactions: times, events, repeats, one item or user with most of them |
| `texts.py` | columns of text: words for "no value", damaged texts, columns without words |
"""

from sigma_jax.data.oddities.ids import (
    alike_notes,
    id_counts,
    id_notes,
    part_of_object,
    similar_id,
    user_notes,
    wrong_ids,
)
from sigma_jax.data.oddities.log import (
    dominant_item,
    dominant_user,
    event_notes,
    repeat_notes,
    time_notes,
)
from sigma_jax.data.oddities.texts import (
    damaged_texts,
    missing_words,
    not_for_text,
    separator_notes,
)

__all__ = [
    "alike_notes",
    "damaged_texts",
    "dominant_item",
    "dominant_user",
    "event_notes",
    "id_counts",
    "id_notes",
    "missing_words",
    "not_for_text",
    "part_of_object",
    "repeat_notes",
    "separator_notes",
    "similar_id",
    "time_notes",
    "user_notes",
    "wrong_ids",
]

"""Themes (seasons, holidays, trends) of the user's table and of the calendar, with their items.

A theme has up to three kinds of items, in this order:
1. items that the user's table gives;
2. items with a word of the theme in their title or category, such as "easter";
3. items that sell in the periods of the theme, by lift. A trend of the table has these only if the
   table gives it no items.

The lift of an item compares its share of interactions inside the periods with the average share b:

    lift = (inside + SHRINKAGE * b) / (all + SHRINKAGE) / b

Among thousands of items some have a large lift by chance. So the count inside must also exceed its
expectation by MIN_SIGMAS standard deviations.

Worked example: b = 0.1, an item with 30 of its 90 interactions inside. lift = 31 / 100 / 0.1 = 3.1;
the expectation is 9, the deviation 2.8, so the count is 7.4 deviations above it.
"""

from __future__ import annotations

import bisect
import datetime
from collections.abc import Mapping, Sequence

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa

from sigma_jax.data import database
from sigma_jax.data.config import ThemesConfig
from sigma_jax.data.engines.dialect import last_edge
from sigma_jax.schema import DAY, Links, Themes

SHRINKAGE = 10.0  # interactions at the average share added to every item, as few prove little
# Standard deviations of an item's count inside the periods above its expectation. With 10,000 items
# and 15 themes, chance alone lifts about five items past 4.0.
MIN_SIGMAS = 4.0
_SEASONS = {"spring": 3, "summer": 6, "fall": 9, "winter": 12}  # first month, north
# Eves, second days and moved days would repeat the items of their holiday. Nobody shops for the
# other days.
_IGNORED_DAYS = (
    "observed",
    "Eve",
    "Day After",
    "Good Friday",
    "Birthday of",
    "Groundhog",
    "Mourning",
)
_SHORT = {
    "Christmas Day": "Christmas",
    "Thanksgiving Day": "Thanksgiving",
    "Easter Sunday": "Easter",
    "New Year's Day": "New Year",
}
# A match in title or category gives an item to the theme; only words with one meaning are used.
_PATTERNS = {
    "Christmas": "christmas|xmas",
    "Easter": "easter",
    "Halloween": "halloween",
    "Thanksgiving": "thanksgiving",
    "Valentine's Day": "valentine",
    "Saint Patrick's Day": "st\\.? patrick|saint patrick",
    "spring": "spring.*season",
    "summer": "summer.*season",
    "fall": "(fall|autumn).*season",
    "winter": "winter.*season",
}


def build_themes(
    con: ibis.BaseBackend,
    given: ir.Table | None,
    items: ir.Table,
    training: ir.Table,
    config: ThemesConfig,
    has_times: bool,
) -> tuple[Themes | None, dict]:
    """The themes that have items, and their statistics for the data card.

    Args:
      con: the database of the tables; tables are added to it.
      given: the user's table as of `Checker.themes`; None without one.
      items: item_id, item, title, category.
      training: item and time of the training rows; lifts see no others.
      config: calendar and limits.
      has_times: False: no calendar and no lift.
    """
    kinds, periods = _given_themes(con, given)
    if config.calendar and has_times:
        first, last = _time_range(con, training)
        for name, kind, start, end in calendar(config, first, last):
            name = _given_spelling(name, kinds)
            kinds.setdefault(name, kind)
            periods.append((name, start, end))
    if not kinds:
        return None, {"count": 0}
    names = list(kinds)
    number = {name: index for index, name in enumerate(names)}
    with_items = set() if given is None else _themes_with_items(con, given)
    lifted = [row for row in periods if kinds[row[0]] != "trend" or row[0] not in with_items]
    scored = _theme_items(con, given, items, training, number, lifted, config)
    columns = database.columns(
        con,
        scored.order_by("theme", "rank"),
        {"theme": np.int32, "item": np.int32},
        database.count(con, scored),
    )
    kept = np.unique(columns["theme"])
    if not len(kept):
        return None, {"count": 0, "without_items": names}
    themes = _numbered_themes(kinds, periods, columns, kept)
    without_items = [name for name in names if number[name] not in kept]
    counts = {names[row]: len(themes.items.of(index)) for index, row in enumerate(kept)}
    return themes, {"count": len(kept), "items": counts, "without_items": without_items}


def _numbered_themes(
    kinds: Mapping[str, str],
    periods: Sequence[tuple[str, int, int]],
    columns: Mapping[str, np.ndarray],
    kept: np.ndarray,
) -> Themes:
    """The themes that have items, numbered anew.

    Args:
      kinds: of all themes; the order gives their numbers.
      periods: (name, start, end) of all themes.
      columns: theme and item, by theme and rank.
      kept: the numbers of the themes with items, ascending.
    """
    names = list(kinds)
    number = {name: index for index, name in enumerate(names)}
    renumber = np.full(len(names), -1, np.int32)
    renumber[kept] = np.arange(len(kept))
    spans = sorted({(int(renumber[number[n]]), s, e) for n, s, e in periods if number[n] in kept})
    period = np.array(spans, np.int64).reshape(-1, 3)
    return Themes(
        pa.array([names[row] for row in kept], pa.string()),
        pa.array([kinds[names[row]] for row in kept], pa.string()),
        Links.from_edges(renumber[columns["theme"]], columns["item"], len(kept)),
        period[:, 0].astype(np.int32),
        period[:, 1],
        period[:, 2],
    )


def calendar(config: ThemesConfig, first: int, last: int) -> list[tuple[str, str, int, int]]:
    """(name, kind, start, end) of the seasons and holidays from `first` to a year after `last`.

    Times are unix seconds, the end exclusive. A holiday starts config.lead_days before its day and
    ends with the day, since people shop ahead.

    Raises:
      ValueError: config.country is unknown.
    """
    years = range(_date(first).year - 1, _date(last).year + 2)
    rows = []
    for year in years:
        for name, month in _SEASONS.items():
            month = month if config.hemisphere == "north" else (month + 5) % 12 + 1
            start = datetime.date(year, month, 1)
            end = datetime.date(year + (month + 3 > 12), (month + 2) % 12 + 1, 1)
            rows.append((name, "season", _seconds(start), _seconds(end)))
    for name, days in sorted(_holidays(config.country, years[1:]).items()):
        for day in days:
            end = _seconds(day) + DAY
            rows.append((name, "holiday", end - (config.lead_days + 1) * DAY, end))
    return [row for row in rows if row[3] > first and row[2] <= last + 366 * DAY]


def _holidays(country: str, years) -> dict[str, list[datetime.date]]:
    import holidays

    try:
        kind = getattr(holidays, country)
    except AttributeError as error:
        raise ValueError(
            f"data.themes.country={country!r} is unknown to the holidays package; "
            "use a code such as US, DE, or set --config.data.themes.calendar=False."
        ) from error
    # Days that people celebrate, without those of the government and of banks only.
    kept = tuple(name for name in ("public", "unofficial") if name in kind.supported_categories)
    found = kind(years=list(years), categories=kept, language=_english(kind))
    names: dict[str, list[datetime.date]] = {}
    for day, joined in sorted(found.items()):
        for name in joined.split("; "):
            if not any(word in name for word in _IGNORED_DAYS):
                names.setdefault(_SHORT.get(name, name), []).append(day)
    return names


def _english(kind) -> str | None:
    return "en_US" if "en_US" in kind.supported_languages else None


def _given_themes(
    con: ibis.BaseBackend, given: ir.Table | None
) -> tuple[dict[str, str], list[tuple[str, int, int]]]:
    """The kind of each theme of the user's table, in its order, and all (name, start, end)."""
    kinds: dict[str, str] = {}
    periods: list[tuple[str, int, int]] = []
    if given is None:
        return kinds, periods
    groups = given.group_by("theme").agg(kind=given["kind"].min(), first=given["source_row"].min())
    for row in database.rows(con, groups.order_by("first")):
        kinds[row["theme"]] = row["kind"]
    dated = given.filter(given["start"].notnull() & given["end"].notnull())
    for row in database.rows(con, dated.select("theme", "start", "end").distinct()):
        periods.append((row["theme"], row["start"], row["end"]))
    return kinds, periods


def _themes_with_items(con: ibis.BaseBackend, given: ir.Table) -> set[str]:
    """The themes that the user's table gives items for."""
    rows = given.filter(given["item_id"].notnull()).select("theme").distinct()
    return {row["theme"] for row in database.rows(con, rows)}


def _given_spelling(name: str, kinds: Mapping[str, str]) -> str:
    """The user's spelling of a theme of the calendar, or `name` if the user has no such theme."""
    return next((known for known in kinds if known.lower() == name.lower()), name)


def _theme_items(
    con: ibis.BaseBackend,
    given: ir.Table | None,
    items: ir.Table,
    training: ir.Table,
    number: Mapping[str, int],
    periods: Sequence[tuple[str, int, int]],
    config: ThemesConfig,
) -> ir.Table:
    """theme, item, strength, lift and rank of the best items of each theme.

    Strength is 2 for an item of the user's table, 1 for an item with a word of the theme, and 0
    otherwise. Items are ranked by strength, then by lift.
    """
    theme_rows = pa.table(
        {
            "theme": pa.array(list(number.values()), pa.int32()),
            "name": pa.array(list(number), pa.string()),
            "pattern": pa.array([_PATTERNS.get(name) for name in number], pa.string()),
        }
    )
    names = database.from_arrow(con, "theme_names", theme_rows)
    parts = []
    if given is not None:
        rows = given.inner_join(items.select("item_id", "item"), "item_id")
        rows = rows.inner_join(names, rows["theme"] == names["name"])
        parts.append(rows.select(theme=names["theme"], item=rows["item"], strength=2).distinct())
    patterns = names.filter(names["pattern"].notnull())
    label = (items["title"] + " " + items["category"].fill_null("")).lower()
    labelled = items.select("item", label=label).cross_join(patterns)
    named = labelled.filter(labelled["label"].re_search(labelled["pattern"]))
    parts.append(named.select("theme", "item", strength=1))
    named = ibis.union(*parts) if len(parts) > 1 else parts[0]
    named = named.group_by("theme", "item").agg(strength=named["strength"].max())
    if periods:
        lifts = _lifts(con, training, number, periods, config)
        both = named.outer_join(lifts, ["theme", "item"])
        scored = both.select(
            theme=ibis.coalesce(both["theme"], both["theme_right"]),
            item=ibis.coalesce(both["item"], both["item_right"]),
            strength=both["strength"].fill_null(0),
            lift=both["lift"].fill_null(0.0),
        )
    else:
        scored = named.mutate(lift=ibis.literal(0.0))
    order = [scored["strength"].desc(), scored["lift"].desc(), scored["item"]]
    rank = ibis.row_number().over(group_by=scored["theme"], order_by=order)
    ranked = scored.select("theme", "item", "strength", "lift", rank=rank)
    kept = ranked.filter(ranked["rank"] < config.items_per_theme)
    return database.save(con, "theme_items", kept)


def _lifts(
    con: ibis.BaseBackend,
    training: ir.Table,
    number: Mapping[str, int],
    periods: Sequence[tuple[str, int, int]],
    config: ThemesConfig,
) -> ir.Table:
    """theme, item and lift of the items whose lift is large enough and not chance."""
    edges = sorted({edge for _, start, end in periods for edge in (start, end)})
    spans = [
        (number[name], row)
        for name, start, end in periods
        for row in range(bisect.bisect_left(edges, start), bisect.bisect_left(edges, end))
    ]
    # Between two edges the active themes do not change. Events are counted for each such span, and
    # spans are joined to themes.
    columns = zip(*sorted(set(spans)), strict=True)
    span_rows = pa.table([pa.array(c, pa.int32()) for c in columns], ["theme", "span"])
    span_table = database.from_arrow(con, "theme_spans", span_rows)
    events = training.select("item", span=last_edge(edges, lambda edge: training["time"] < edge))
    events = events.filter(events["span"] >= 0).group_by("item", "span")
    inside = events.agg(events=lambda t: t.count()).inner_join(span_table, "span")
    item_totals = training.group_by("item").agg(all=training.count())
    per_theme = inside.group_by("theme").agg(theme_events=inside["events"].sum())
    pairs = inside.group_by("theme", "item").agg(inside=inside["events"].sum())
    pairs = pairs.inner_join(item_totals, "item").inner_join(per_theme, "theme")
    total = training.count().as_scalar()
    share = pairs["theme_events"] / total
    shrunk = (pairs["inside"] + SHRINKAGE * share) / (pairs["all"] + SHRINKAGE)
    expected = pairs["all"] * share
    sigmas = (pairs["inside"] - expected) / (expected * (1 - share) + 1e-9).sqrt()
    lifts = pairs.select(
        "theme", "item", "inside", lift=(shrunk / share).round(6), sigmas=sigmas.round(6)
    )
    is_lifted = (lifts["inside"] >= config.min_count) & (lifts["lift"] >= config.min_lift)
    is_lifted = is_lifted & (lifts["sigmas"] >= MIN_SIGMAS)
    return lifts.filter(is_lifted).select("theme", "item", "lift")


def _time_range(con: ibis.BaseBackend, training: ir.Table) -> tuple[int, int]:
    """The first and the last time of the training rows, in unix seconds."""
    row = database.rows(con, training.agg(a=training["time"].min(), b=training["time"].max()))[0]
    return row["a"] or 0, row["b"] or 0


def _date(seconds: int) -> datetime.date:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).date()


def _seconds(day: datetime.date) -> int:
    return int(datetime.datetime(day.year, day.month, day.day, tzinfo=datetime.UTC).timestamp())

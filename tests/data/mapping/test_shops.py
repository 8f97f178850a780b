"""Exports of shops: the proposal reads them, or asks what it cannot know."""

import json

import pytest
from mapping_reading import read_tables
from mapping_shapes import lines

from sigma_jax.data.mapping.inspect import inspect_folder

GOODS = lines("SKU;Product Name;Price", "A1;Tea;1,5", "A2;Cup;2.450,25", "A3;Pot;3")


def orders(*days: str) -> str:
    """Orders of three goods by three customers, one of each day."""
    rows = [f"{100 + k};C{k % 3};A{k % 3 + 1};{day};1" for k, day in enumerate(days)]
    return lines("Order ID;Customer ID;SKU;Order Date;Qty", *rows)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "goods.csv").write_text(GOODS)
    return folder


def times_of(folder) -> list[int]:
    return [row["time"] for row in read_tables(folder, folder.parent)["interactions"]]


@pytest.mark.parametrize(
    ("days", "first"),
    [
        (("05/01/2024 13:30", "06/02/2024 14:00", "25/03/2024 09:00"), 1704461400),
        (("05/01/24", "06/02/24", "25/03/24"), 1704412800),
        (("01.02.2024 10:00", "02.02.2024 10:00"), 1706781600),
        (("45413,5", "45414,25"), 1714564800),
        (("45413.5", "45414.25"), 1714564800),
        (("2024-05-01 01:30:00 PM", "2024-05-02 01:30:00 AM"), 1714570200),
    ],
)
def test_times_of_spreadsheets_are_read(folder, days, first):
    (folder / "orders.csv").write_text(orders(*days))
    inspect_folder(folder, overwrite=False)
    assert times_of(folder)[0] == first


def test_ambiguous_days_are_asked_for_and_refused_until_answered(folder):
    (folder / "orders.csv").write_text(orders("05/01/2024", "06/02/2024"))
    text = inspect_folder(folder, overwrite=False)
    assert "  #   '%m/%d/%Y' if it is 2024-05-01\n  time: FILL_IN\n" in text
    assert "Replace FILL_IN in it" in text
    with pytest.raises(ValueError, match=r"interactions.time is still FILL_IN; replace it there"):
        times_of(folder)
    mapping = folder / "mapping.yaml"
    mapping.write_text(mapping.read_text().replace("time: FILL_IN", "time: '%m/%d/%Y'"))
    assert times_of(folder) == [1714521600, 1717286400]


def test_a_late_row_decides_between_day_and_month(folder):
    (folder / "orders.csv").write_text(orders(*["05/01/2024"] * 5_100, "05/25/2024"))
    assert "  time: '%m/%d/%Y'\n" in inspect_folder(folder, overwrite=False)
    assert times_of(folder)[-1] == 1716595200


def test_a_time_in_no_known_form_is_asked_for(folder):
    (folder / "orders.csv").write_text(orders("1. Mai 2024", "2. Mai 2024"))
    text = inspect_folder(folder, overwrite=False)
    assert "# Order Date is named like a time, but no known form fits '1. Mai 2024'." in text
    with pytest.raises(ValueError, match="is still FILL_IN"):
        times_of(folder)
    mapping = folder / "mapping.yaml"
    mapping.write_text(mapping.read_text().replace("time: FILL_IN", "time: none"))
    assert times_of(folder) == [0, 0]


def test_decimal_commas_become_points(folder):
    (folder / "orders.csv").write_text(orders("2024-05-01", "2024-05-02"))
    assert "  decimal_comma: [Price]\n" in inspect_folder(folder, overwrite=False)
    items = read_tables(folder, folder.parent)["items"]
    assert [row["Price"] for row in items] == ["1.5", "2450.25", "3"]


def test_windows_text_is_read_and_the_mapping_has_no_control_characters(folder):
    (folder / "orders.csv").write_text(orders("2024-05-01", "2024-05-02"))
    (folder / "goods.csv").write_bytes(GOODS.replace("Tea", "“Tea” 5€").encode("cp1252"))
    assert "  encoding: cp1252\n" in inspect_folder(folder, overwrite=False)
    assert read_tables(folder, folder.parent)["items"][0]["title"] == "“Tea” 5€"
    (folder / "goods.csv").write_bytes(GOODS.encode().replace(b"Tea", b"\x93Tea\x81\x85"))
    text = inspect_folder(folder, overwrite=True)
    assert "  encoding: latin-1\n" in text
    assert "?Tea? | Cup" in text
    with pytest.raises(ValueError, match=r"goods.csv: line 2 is not text in latin-1; .* cp1252"):
        read_tables(folder, folder.parent)


def test_one_file_of_invoices_is_log_and_items(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    header = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country"
    rows = [
        "536365,85123A,HOLDER,6,12/1/2010 8:26,2.55,17850,UK",
        "536367,84406B,CUPID,8,12/1/2010 8:34,2.75,,UK",
        "536368,84406B,CUPID,8,12/13/2010 8:34,2.75,13047,UK",
    ]
    (folder / "sales.csv").write_text(lines(header, *rows))
    text = inspect_folder(folder, overwrite=False)
    assert "# 1 of the first 3 rows have no CustomerID: rows without it are left out" in text
    found = read_tables(folder, tmp_path)
    assert [row["title"] for row in found["items"]] == ["HOLDER", "CUPID"]
    assert [tuple(row.values()) for row in found["interactions"]] == [
        ("17850", "85123A", "536365", 1291191960),
        ("13047", "84406B", "536368", 1292229240),
    ]


def test_orders_without_an_id_of_the_customer_are_of_a_mail_address(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    rows = [
        "#1,a@x.org,2024-05-01 12:30:00 +0200,,A1,Tea",
        "#1,a@x.org,2024-05-01 12:30:00 +0200,,A2,Cup",
        "#2,b@x.org,2024-05-02 12:30:00 +0200,2024-05-03,A1,Tea",
    ]
    header = "Name,Email,Created at,Cancelled at,Lineitem sku,Lineitem name"
    (folder / "orders.csv").write_text(lines(header, *rows))
    goods = lines("Handle,Title,Type,Variant SKU", "tea,Tea,X,A1", "cup,Cup,Y,A2")
    (folder / "products.csv").write_text(goods)
    inspect_folder(folder, overwrite=False)
    found = read_tables(folder, tmp_path)
    assert [(row["item_id"], row["title"]) for row in found["items"]] == [
        ("A1", "Tea"),
        ("A2", "Cup"),
    ]
    assert [(row["user_id"], row["item_id"]) for row in found["interactions"]] == [
        ("a@x.org", "A1"),
        ("a@x.org", "A2"),
        ("b@x.org", "A1"),
    ]


def order(number: int, customer: int, *goods: int) -> dict:
    return {
        "id": number,
        "app_id": 580111,
        "user_id": None,
        "created_at": f"2024-05-0{number}T12:30:00+02:00",
        "customer": {"id": customer, "default_address": {"id": 5, "customer_id": customer}},
        "line_items": [
            {"id": 10 * number + n, "variant_id": 7, "product_id": good, "title": f"good {good}"}
            for n, good in enumerate(goods)
        ],
        "shipping_lines": [{"id": 1}],
    }


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("is_wrapped", [False, True])
def test_orders_of_an_api_are_read_inside_objects_lists_and_a_wrapper(indent, is_wrapped, tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    found = [order(1, 77, 2, 1), order(2, 78, 1), order(3, 77)]
    text = json.dumps({"orders": found} if is_wrapped else found, indent=indent)
    (folder / "orders.json").write_text(text)
    goods = [{"id": n, "title": f"good {n}", "variants": [{"id": 7}]} for n in (1, 2)]
    (folder / "products.json").write_text(json.dumps({"products": goods}, indent=indent))
    inspect_folder(folder, overwrite=False)
    tables = read_tables(folder, tmp_path)
    assert tables["items"] == [{"item_id": str(n), "title": f"good {n}"} for n in (1, 2)]
    assert [tuple(row.values())[:3] for row in tables["interactions"]] == [
        ("77", "2", "1"),
        ("77", "1", "1"),
        ("78", "1", "2"),
    ]
    (folder / "products.json").unlink()
    inspect_folder(folder, overwrite=True)
    items = read_tables(folder, tmp_path)["items"]
    assert items == [{"item_id": str(n), "title": f"good {n}"} for n in (2, 1)]


def test_parts_in_folders_below_are_one_file(folder):
    for part in range(10):
        below = folder / "orders" / f"day={part}"
        below.mkdir(parents=True)
        (below / "part.csv").write_text(orders(f"2024-05-{part + 1:02d}"))
        (below / "_SUCCESS").write_text("")
    for part in range(10):
        (folder / "orders" / "day=0" / f"part-{part}.csv").write_text(orders("2024-06-01"))
    text = inspect_folder(folder, overwrite=False)
    assert "  file: orders/*/*.csv\n" in text
    assert len(times_of(folder)) == 20


def test_where_no_log_is_found_the_error_has_candidates_and_a_start(tmp_path):
    rows = ["x,A1,2024-05-01,2.5", "z,A1,2024-05-02,2.5", "z,A2,2024-05-02,3.5"]
    (tmp_path / "a.csv").write_text(lines("Kunde,article_no,date,Preis", *rows))
    with pytest.raises(ValueError) as error:
        inspect_folder(tmp_path, overwrite=False)
    message = str(error.value)
    assert "may be ids: a.csv: Kunde, article_no, date. Write mapping.yaml" in message
    assert (
        'interactions: {file: "a.csv", columns: {user_id: "FILL_IN", item_id: "article_no", '
        'timestamp: "date"}}' in message
    )
    assert "\n" not in message


def test_the_id_of_a_line_is_no_item_and_a_time_joins_no_files(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    rows = [f"{n},{n // 2},p{n % 3},2024-05-01 10:0{n}:00" for n in range(6)]
    (folder / "lines.csv").write_text(lines("item_id,order_id,product_id,created_at", *rows))
    orders = [f"{n},c{n},2024-05-01 10:0{n}:00" for n in range(6)]
    (folder / "orders.csv").write_text(lines("entity_id,customer_id,created_at", *orders))
    text = inspect_folder(folder, overwrite=False)
    assert (
        "  # No column of users is known by its name, so each order_id counts as a user.\n" in text
    )
    found = read_tables(folder, tmp_path)
    assert [row["item_id"] for row in found["interactions"]] == [f"p{n % 3}" for n in range(6)]
    assert [row["user_id"] for row in found["interactions"]] == [f"{n // 2}" for n in range(6)]
    assert "users" not in found


def test_users_of_orders_are_found_through_the_file_of_orders(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    items = ["o1,1,p1,2017-09-19", "o1,2,p2,2017-09-19", "o2,1,p1,2017-10-19"]
    (folder / "order_items.csv").write_text(lines("order_id,order_item_id,product_id,day", *items))
    orders = ["o1,c1", "o2,c2", "o3,c1"]  # no table of users: c1 stands in it twice
    (folder / "orders.csv").write_text(lines("order_id,customer_id", *orders))
    inspect_folder(folder, overwrite=False)
    found = read_tables(folder, tmp_path)
    assert [(row["user_id"], row["item_id"]) for row in found["interactions"]] == [
        ("c1", "p1"),
        ("c1", "p2"),
        ("c2", "p1"),
    ]
    assert "users" not in found

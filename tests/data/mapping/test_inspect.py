"""The proposal for foreign files: right for the shapes of public data sets, and never forced."""

import subprocess
import sys
from pathlib import Path

import pytest
from mapping_expected import TABLES
from mapping_reading import read_tables
from mapping_shapes import SHAPES, lines, write_shape
from processes import environment

from sigma_jax.data.mapping import roles
from sigma_jax.data.mapping.inspect import inspect_folder
from sigma_jax.data.mapping.look import look_at_file, looks_like_header
from sigma_jax.data.mapping.spec import read_mapping

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", SHAPES)
def test_proposal_reads_the_same_log_items_and_users(name, tmp_path):
    folder = write_shape(name, tmp_path / "files")
    text = inspect_folder(folder, overwrite=False)
    assert str(folder / "mapping.yaml") in text
    found, expected = read_tables(folder, tmp_path), TABLES[name]
    assert [tuple(row.values()) for row in found["interactions"]] == expected["interactions"]
    for table, key in (("items", "item_id"), ("users", "user_id")):
        ids = [[row[key] for row in tables.get(table, [])] for tables in (found, expected)]
        assert ids[0] == ids[1]
    if "title" in found["items"][0]:
        titles = [[row["title"] for row in tables["items"]] for tables in (found, expected)]
        assert titles[0] == titles[1]


def test_categories_of_a_join_go_from_coarse_to_fine(tmp_path):
    folder = write_shape("instacart", tmp_path / "files")
    inspect_folder(folder, overwrite=False)
    items = read_tables(folder, tmp_path)["items"]
    assert [row["category"] for row in items] == [
        row["category"] for row in TABLES["instacart"]["items"]
    ]


def test_samples_and_what_is_not_used_are_shown(tmp_path):
    folder = write_shape("movielens_csv", tmp_path / "files")
    text = inspect_folder(folder, overwrite=False)
    assert "    title: title  # Rain, The (1990) | Café (1987)\n" in text
    assert "  # not used: rating\n" in text
    assert "# links.csv: movieId, imdbId, tmdbId\n" in text


def test_documentation_shows_what_the_command_writes(tmp_path):
    folder = write_shape("movielens_csv", tmp_path / "files")
    inspect_folder(folder, overwrite=False)
    page = (ROOT / "docs" / "own_data.md").read_text()
    assert f"```yaml\n{(folder / 'mapping.yaml').read_text()}```\n" in page


def test_mapping_that_exists_is_replaced_only_when_told(tmp_path):
    folder = write_shape("movielens_csv", tmp_path / "files")
    (folder / "mapping.yaml").write_text("mine")
    with pytest.raises(ValueError, match=r"mapping.yaml exists; .* --overwrite"):
        inspect_folder(folder, overwrite=False)
    assert (folder / "mapping.yaml").read_text() == "mine"
    inspect_folder(folder, overwrite=True)
    assert set(read_mapping("m", (folder / "mapping.yaml").read_text())) == {
        "items",
        "interactions",
    }


def test_folder_without_a_log_is_refused_and_gets_no_file(tmp_path):
    (tmp_path / "a.csv").write_text(lines("id,colour", "1,red"))
    with pytest.raises(ValueError, match=r"no file has a column of users and one of items .*a.csv"):
        inspect_folder(tmp_path, overwrite=False)
    assert not (tmp_path / "mapping.yaml").exists()
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="empty has no table; give the folder"):
        inspect_folder(empty, overwrite=False)
    (empty / "a.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"has no table \(a.zip: unpack it first\)"):
        inspect_folder(empty, overwrite=False)
    with pytest.raises(ValueError, match="is not a folder"):
        inspect_folder(tmp_path / "none", overwrite=False)


def test_odd_files_are_named_and_do_not_stop_the_look(tmp_path):
    folder = write_shape("hm", tmp_path / "files")
    (folder / "empty.csv").write_text("")
    (folder / "images.zip").write_bytes(b"PK")
    (folder / "broken.json").write_text('{"a": \n')
    (folder / "images").mkdir()
    (folder / "pictures").mkdir()
    (folder / "pictures" / "a.jpg").write_bytes(b"x")
    text = inspect_folder(folder, overwrite=False)
    for line in (
        "# broken.json: line 1 is not one object",
        "# empty.csv: it is empty",
        "# images.zip: unpack it first",
        "# images: a folder without tables",
        "# pictures/a.jpg: no table by its name",
    ):
        assert line in text.splitlines()


def test_command_prints_and_writes_the_proposal(tmp_path):
    folder = write_shape("otto", tmp_path / "files")
    command = [sys.executable, "-m", "sigma_jax.prepare", f"--inspect={folder}"]
    done = subprocess.run(command, cwd=ROOT, env=environment(1), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (folder / "mapping.yaml").read_text() in done.stdout
    done = subprocess.run(command, cwd=ROOT, env=environment(1), capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and "--overwrite" in done.stderr


@pytest.mark.parametrize(
    ("fields", "is_header"),
    [
        (["user", "item", "at"], True),
        (["", "user", "item"], True),
        (["1", "Toy", "Comedy"], False),
        (["u1", "2021-01-01", "x"], False),
        (["0ab", "f", "", "Germany"], False),
        (["a", "a"], False),
    ],
)
def test_header_has_names_only(fields, is_header):
    assert looks_like_header(fields) == is_header


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("customer_id", "user"),
        ("visitorid", "user"),
        ("reviewerID", "user"),
        ("household_key", "user"),
        ("username", "user"),
        ("user_count", None),
        ("parent_asin", "item"),
        ("PRODUCT_ID", "item"),
        ("movieId", "item"),
        ("product_name", None),
        ("store_id", None),
        ("StockCode", "item"),
        ("SKUCode", "item"),
        ("Variant SKU", "item"),
        ("barcode", "item"),
        ("stock", None),
        ("productno", "item"),
        ("line_items.product_id", "item"),
        ("products.id", "item"),
        ("order.customer.id", "user"),
        ("customer.city", None),
        ("guest_number", "user"),
        ("loyalty card no", "user"),
        ("device", None),
        ("InvoiceNo", "session"),
        ("transactionid", "session"),
        ("BASKET_ID", "session"),
    ],
)
def test_ids_are_known_by_their_names(name, kind):
    kinds = {"user": roles.USER, "item": roles.ITEM, "session": roles.SESSION}
    assert [key for key, words in kinds.items() if roles.is_id_of(name, words)] == (
        [kind] if kind else []
    )


def test_encodings_and_a_cut_character_are_told_apart(tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_bytes("id,name\n1,é\n2,ü\n".encode("latin-1"))
    assert look_at_file(tmp_path / "a.csv").encoding == "latin-1"
    (tmp_path / "b.csv").write_bytes("id,name\n1,é\n2,ü\n".encode())
    monkeypatch.setattr("sigma_jax.data.mapping.opening.PEEK_BYTES", 11)  # inside the é
    assert look_at_file(tmp_path / "b.csv").encoding == "utf-8"
    # The first byte that only cp1252 has comes behind the first look.
    (tmp_path / "c.csv").write_bytes("id,name\n1,é\n2,ü\n3,“a” 5€\n".encode("cp1252"))
    monkeypatch.setattr("sigma_jax.data.mapping.opening.PEEK_BYTES", 20)
    assert look_at_file(tmp_path / "c.csv").encoding == "cp1252"
    # Byte 0x81 is no letter of cp1252.
    (tmp_path / "d.csv").write_bytes(b"id,name\n1,\x93\x81\n")
    assert look_at_file(tmp_path / "d.csv").encoding == "latin-1"


@pytest.mark.parametrize("names", [("product_group",), ("colour", "Section"), ("kind", "type")])
def test_groups_of_items_are_categories_where_nothing_else_is(names, tmp_path):
    rows = [f"{n},thing {n},{','.join(f'{name} {n % 3}' for name in names)}" for n in range(12)]
    (tmp_path / "goods.csv").write_text(lines(f"sku,title,{','.join(names)}", *rows))
    log = [f"u{n % 4},{n},2024-01-{n + 1:02d}" for n in range(12)]
    (tmp_path / "log.csv").write_text(lines("customer_id,sku,date", *log))
    text = inspect_folder(tmp_path, overwrite=False)
    group = names[-1] if names[0] == "colour" else names[0]
    assert f"    category: {group}  # {group} 0" in text


def test_a_kind_that_all_items_share_is_no_category(tmp_path):
    rows = [f"{n},thing {n},book,{n}" for n in range(12)]
    (tmp_path / "goods.csv").write_text(lines("sku,title,kind,section", *rows))
    log = [f"u{n % 4},{n},2024-01-{n + 1:02d}" for n in range(12)]
    (tmp_path / "log.csv").write_text(lines("customer_id,sku,date", *log))
    assert "category:" not in inspect_folder(tmp_path, overwrite=False)

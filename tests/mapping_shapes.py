"""Small made-up files in the shapes of public data sets, by the name of their example mapping."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def lines(*rows: str) -> str:
    return "\n".join(rows) + "\n"


def json_lines(*rows: dict) -> str:
    return lines(*(json.dumps(row, ensure_ascii=False) for row in rows))


def python_lines(*rows: dict) -> str:
    return lines(*(repr(row) for row in rows))


def tabs(*rows: tuple) -> str:
    return lines(*("\t".join(str(field) for field in row) for row in rows))


SHAPES: dict[str, dict[str, str | bytes]] = {
    "movielens_1m": {
        "movies.dat": lines(
            '10::Café "Zoé" (1987)::Comedy|Drama', "20::Rain: a Film, Long (1990)::Drama"
        ).encode("latin-1"),
        "ratings.dat": lines("5::10::4::1609459200", "5::20::3::1609459260", "6::10::5::978300760"),
        "users.dat": lines("5::F::25::6::01234", "6::M::50::2::55117"),
    },
    "movielens_csv": {
        "movies.csv": lines(
            "movieId,title,genres", '10,"Rain, The (1990)",Drama', "20,Café (1987),Comedy|Drama"
        ),
        "ratings.csv": lines(
            "userId,movieId,rating,timestamp", "5,10,3.5,1609459200", "5,20,4.0,1609459260"
        ),
        "links.csv": lines("movieId,imdbId,tmdbId", "10,0114709,862", "20,0113497,8844"),
    },
    "amazon_reviews_2023": {
        "meta_All_Beauty.jsonl": json_lines(
            {
                "main_category": "All Beauty",
                "title": "Comb of wood",
                "average_rating": 4.5,
                "features": ["Fine", "Small"],
                "description": [],
                "price": 12.99,
                "images": [{"thumb": "https://example.com/a.jpg", "variant": "MAIN"}],
                "store": "Zoé",
                "categories": ["Hair", "Combs"],
                "details": {"Brand": "Zoé", "brand": "zoe", "Item Weight": "2 ounces"},
                "parent_asin": "B00X1",
                "bought_together": None,
            },
            {
                "main_category": "All Beauty",
                "title": "Soap",
                "average_rating": 4,
                "features": [],
                "description": ["A soap.", "It cleans."],
                "price": None,
                "images": [],
                "store": None,
                "categories": [],
                "details": {},
                "parent_asin": "0000123",
                "bought_together": None,
            },
        ),
        "All_Beauty.jsonl.gz": gzip.compress(
            json_lines(
                {
                    "rating": 5.0,
                    "title": "Good",
                    "text": "Very good",
                    "images": [],
                    "asin": "B00X1A",
                    "parent_asin": "B00X1",
                    "user_id": "AEX1",
                    "timestamp": 1609459200123,
                    "helpful_vote": 0,
                    "verified_purchase": True,
                },
                {
                    "rating": 4.0,
                    "title": "Fine",
                    "text": "It is fine",
                    "images": [],
                    "asin": "0000123",
                    "parent_asin": "0000123",
                    "user_id": "AEX2",
                    "timestamp": 1609459260999,
                    "helpful_vote": 2,
                    "verified_purchase": False,
                },
            ).encode()
        ),
    },
    "hm": {
        "articles.csv": lines(
            "article_id,product_code,prod_name,product_type_name,product_group_name,"
            "graphical_appearance_name,colour_group_name,index_group_name,detail_desc",
            "0108775015,0108775,Strap top,Vest top,Upper body,Solid,Black,Ladies,"
            '"Top, with straps"',
            "0110065002,0110065,Sock,Socks,Socks & Tights,Stripe,White,Men,",
        ),
        "transactions_train.csv": lines(
            "t_dat,customer_id,article_id,price,sales_channel_id",
            "2021-01-01,00ab,0108775015,0.05,2",
            "2021-01-02,00cd,0110065002,0.03,1",
            "2021-01-02,00ab,0110065002,0.03,1",
        ),
        "customers.csv": lines(
            "customer_id,FN,Active,club_member_status,fashion_news_frequency,age,postal_code",
            "00ab,,,ACTIVE,NONE,49,52043ee",
            "00cd,1,1,ACTIVE,Regularly,,2973ab",
        ),
    },
    "retailrocket": {
        "events.csv": lines(
            "timestamp,visitorid,event,itemid,transactionid",
            "1609459200000,7,view,355908,",
            "1609459260000,7,transaction,355908,4000",
            "1609459320000,8,addtocart,248676,",
        ),
        "item_properties_part1.csv": lines(
            "timestamp,itemid,property,value",
            "1435460400000,355908,categoryid,1338",
            "1441508400000,355908,available,1",
            "1441508400000,248676,categoryid,213",
        ),
        "item_properties_part2.csv": lines(
            "timestamp,itemid,property,value",
            "1435460400000,355908,available,0",
            "1435460400000,248676,790,n552.000 639502",
            "1442718000000,355908,categoryid,1339",
        ),
        "category_tree.csv": lines("categoryid,parentid", "1338,5", "1339,9", "213,", "5,"),
    },
    "instacart": {
        "orders.csv": lines(
            "order_id,user_id,eval_set,order_number,order_dow,order_hour_of_day,"
            "days_since_prior_order",
            "91,1,prior,2,3,07,15.0",
            "90,1,prior,1,2,08,",
            "92,1,train,10,3,12,30.0",
            "93,2,prior,1,2,15,",
            "94,2,test,2,5,11,6.0",
        ),
        "order_products__prior.csv": lines(
            "order_id,product_id,add_to_cart_order,reordered",
            "91,196,1,1",
            "90,196,1,0",
            "90,14084,2,0",
            "93,14084,1,0",
        ),
        "order_products__train.csv": lines(
            "order_id,product_id,add_to_cart_order,reordered", "92,196,1,1"
        ),
        "products.csv": lines(
            "product_id,product_name,aisle_id,department_id",
            "14084,Almond Milk,91,16",
            '196,"Soda, ""Old""",77,7',
        ),
        "aisles.csv": lines(
            "aisle_id,aisle", "77,soft drinks", "91,soy lactosefree", "92,none of it"
        ),
        "departments.csv": lines("department_id,department", "7,beverages", "16,dairy eggs"),
    },
    "otto": {
        "train.jsonl": json_lines(
            {
                "session": 0,
                "events": [
                    {"aid": 1517085, "ts": 1609459200278, "type": "clicks"},
                    {"aid": 1563459, "ts": 1609459260990, "type": "carts"},
                    {"aid": 1517085, "ts": 1609459270000, "type": "orders"},
                ],
            },
            {"session": 1, "events": []},
            {"session": 2, "events": [{"aid": 1309446, "ts": 1609459300000, "type": "clicks"}]},
        )
    },
    "yelp": {
        "yelp_academic_dataset_business.json": json_lines(
            {
                "business_id": "Pns2l4",
                "name": "Zoé & Söhne",
                "address": "1 Main St",
                "city": "Tucson",
                "state": "AZ",
                "stars": 4.5,
                "is_open": 1,
                "attributes": {"RestaurantsPriceRange2": "2", "WiFi": "u'free'"},
                "categories": "Doctors, Health",
                "hours": {"Monday": "8:0-17:0"},
            },
            {
                "business_id": "mpf3xB",
                "name": "Ship",
                "address": "",
                "city": "Affton",
                "state": "MO",
                "stars": 3.0,
                "is_open": 0,
                "attributes": None,
                "categories": None,
                "hours": None,
            },
        ),
        "yelp_academic_dataset_review.json": json_lines(
            {
                "review_id": "KU_O5u",
                "user_id": "mh_-eM",
                "business_id": "Pns2l4",
                "stars": 3.0,
                "useful": 0,
                "text": "Long",
                "date": "2021-01-01 00:00:00",
            },
            {
                "review_id": "BiTun8",
                "user_id": "OyoGAe",
                "business_id": "mpf3xB",
                "stars": 5.0,
                "useful": 1,
                "text": "Short",
                "date": "2021-01-01 00:01:00",
            },
        ),
        "yelp_academic_dataset_user.json": json_lines(
            {
                "user_id": "mh_-eM",
                "name": "Ann",
                "review_count": 585,
                "yelping_since": "2007-01-25 16:47:26",
                "friends": "NSCy54, j14Wgk",
            },
            {
                "user_id": "OyoGAe",
                "name": "Bob",
                "review_count": 4,
                "yelping_since": "2009-01-25 04:35:42",
                "friends": "None",
            },
        ),
    },
    "steam": {
        "steam_games.json": python_lines(
            {
                "publisher": "Koto",
                "genres": ["Action", "Indie"],
                "app_name": "Lost & 'Found'",
                "tags": ["Strategy", "RPG"],
                "price": 4.99,
                "early_access": False,
                "id": "761140",
                "developer": "Koto",
            },
            {"app_name": "Nameless", "price": "Free To Play", "early_access": True},
            {"app_name": "Ironfort", "tags": ["RPG"], "price": "Free", "id": "643980"},
            {"app_name": "Ironfort again", "tags": ["RPG"], "price": "Free", "id": "643980"},
        ),
        "steam_reviews.json.gz": gzip.compress(
            # Python 2 wrote them: every text has a u.
            lines(
                "{u'username': u'Chaos', u'hours': 0.1, u'product_id': u'761140', "
                "u'date': u'2021-01-01', u'text': u'It\\'s \"good\"', u'early_access': False}",
                "{u'username': u'Zo\\xe9', u'hours': None, u'product_id': u'643980', "
                "u'date': u'2021-01-02', u'text': u'', u'early_access': True}",
            ).encode()
        ),
    },
    "steam_australia": {
        "steam_games.json": python_lines(
            {"app_name": "Ironfort", "tags": ["RPG"], "price": "Free", "id": "643980"},
            {"app_name": "Lost", "developer": "Koto", "price": 4.99, "id": "1250"},
        ),
        "australian_user_reviews.json": python_lines(
            {
                "user_id": "7656",
                "user_url": "http://example.com/7656",
                "reviews": [
                    {"posted": "Posted January 1, 2021.", "item_id": "1250", "recommend": True},
                    {"posted": "Posted January 2, 2021.", "item_id": "643980", "recommend": False},
                ],
            },
            {"user_id": "js41", "user_url": "http://example.com/js41", "reviews": []},
        ),
    },
    "lastfm_1k": {
        "userid-timestamp-artid-artname-traid-traname.tsv": tabs(
            ("user_01", "2021-01-01T00:01:00Z", "f1b1", "Zoé's 12\" Band", "", "One of Them"),
            ("user_01", "2021-01-01T00:00:00Z", "", "Underworld", "33", 'Boy, "Boy"'),
            ("user_02", "2021-01-02T00:00:00Z", "f1b1", "Zoé's 12\" Band", "34", "Two"),
        ),
        "userid-profile.tsv": tabs(
            ("#id", "gender", "age", "country", "registered"),
            ("user_01", "m", "", "Japan", "Aug 13, 2006"),
            ("user_02", "f", "24", "Peru", "Feb 24, 2006"),
        ),
    },
    "lastfm_360k": {
        "usersha1-artmbid-artname-plays.tsv": tabs(
            ("00000c28", "3bd73256", "betty b.", 2137),
            ("00000c28", "", 'die "ä"', 1099),
            ("00001411", "3bd73256", "betty b.", 897),
        ),
        "usersha1-profile.tsv": tabs(
            ("00000c28", "f", "", "Germany", "Feb 1, 2007"),
            ("00001411", "m", "23", "Peru", "Dec 4, 2007"),
        ),
    },
    "complete_journey": {
        "product.csv": lines(
            "PRODUCT_ID,MANUFACTURER,DEPARTMENT,BRAND,COMMODITY_DESC,SUB_COMMODITY_DESC,"
            "CURR_SIZE_OF_PRODUCT",
            "25671,2,GROCERY,National,FRZN ICE,ICE - CRUSHED,22 LB",
            "26081,2,MISC. TRANS.,National,NO COMMODITY,NO SUB, ",
        ),
        "transaction_data.csv": lines(
            "household_key,BASKET_ID,DAY,PRODUCT_ID,QUANTITY,SALES_VALUE,STORE_ID,TRANS_TIME",
            "2375,26984851472,1,25671,1,1.39,364,1631",
            "2375,26984851472,1,26081,1,0.82,364,1631",
            "1364,26984896261,711,25671,1,2.19,31742,1520",
        ),
        "hh_demographic.csv": lines(
            "AGE_DESC,MARITAL_STATUS_CODE,INCOME_DESC,household_key",
            "65+,A,35-49K,2375",
            "45-54,A,50-74K,1364",
        ),
    },
    "recbole": {
        "ml.item": tabs(
            ("item_id:token", "movie_title:token_seq", "release_year:token", "class:token_seq"),
            ("10", 'Café "Zoé"', "1987", "Comedy Drama"),
            ("020", "Rain", "1990", "Drama"),
        ),
        "ml.inter": tabs(
            ("user_id:token", "item_id:token", "rating:float", "timestamp:float"),
            ("5", "10", "3", "1609459200"),
            ("6", "020", "5", "1609459260.0"),
        ),
        "ml.user": tabs(
            ("user_id:token", "age:token", "gender:token"), ("5", "24", "M"), ("6", "53", "F")
        ),
    },
}


def write_shape(name: str, folder: Path) -> Path:
    """Writes the files of a shape into `folder`, which it returns."""
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in SHAPES[name].items():
        content = content.encode() if isinstance(content, str) else content
        (folder / file).write_bytes(content)
    return folder


def write_parquet(path: Path, **columns: list) -> None:
    pq.write_table(pa.table(columns), path)

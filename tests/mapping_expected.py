"""The tables that the example mappings make of the files in mapping_shapes.py, checked by eye.

Interactions are (user_id, item_id, session_id, time).
"""

TABLES: dict[str, dict[str, list]] = {
    "movielens_1m": {
        "items": [
            {"item_id": "10", "title": 'Café "Zoé" (1987)', "genres": "Comedy|Drama"},
            {"item_id": "20", "title": "Rain: a Film, Long (1990)", "genres": "Drama"},
        ],
        "users": [
            {"user_id": "5", "gender": "F", "age": "25", "occupation": "6", "zip_code": "01234"},
            {"user_id": "6", "gender": "M", "age": "50", "occupation": "2", "zip_code": "55117"},
        ],
        "interactions": [
            ("5", "10", None, 1609459200),
            ("5", "20", None, 1609459260),
            ("6", "10", None, 978300760),
        ],
    },
    "movielens_csv": {
        "items": [
            {"item_id": "10", "title": "Rain, The (1990)", "genres": "Drama"},
            {"item_id": "20", "title": "Café (1987)", "genres": "Comedy|Drama"},
        ],
        "interactions": [("5", "10", None, 1609459200), ("5", "20", None, 1609459260)],
    },
    "amazon_reviews_2023": {
        "items": [
            {
                "item_id": "B00X1",
                "title": "Comb of wood",
                "category": "Hair > Combs",
                "brand": "Zoé",
                "price": "12.99",
                "features": "Fine, Small",
                "description": None,
            },
            {
                "item_id": "0000123",
                "title": "Soap",
                "category": None,
                "brand": None,
                "price": None,
                "features": None,
                "description": "A soap., It cleans.",
            },
        ],
        "interactions": [
            ("AEX1", "B00X1", None, 1609459200),
            ("AEX2", "0000123", None, 1609459260),
        ],
    },
    "hm": {
        "items": [
            {
                "item_id": "0108775015",
                "title": "Strap top",
                "category": "Ladies > Upper body > Vest top",
                "colour": "Black",
                "pattern": "Solid",
                "description": "Top, with straps",
            },
            {
                "item_id": "0110065002",
                "title": "Sock",
                "category": "Men > Socks & Tights > Socks",
                "colour": "White",
                "pattern": "Stripe",
                "description": None,
            },
        ],
        "users": [
            {"user_id": "00ab", "age": "49", "club": "ACTIVE"},
            {"user_id": "00cd", "age": None, "club": "ACTIVE"},
        ],
        "interactions": [
            ("00ab", "0108775015", None, 1609459200),
            ("00cd", "0110065002", None, 1609545600),
            ("00ab", "0110065002", None, 1609545600),
        ],
    },
    "retailrocket": {
        "items": [
            {"item_id": "355908", "category": "9 > 1339", "available": "1"},
            {"item_id": "248676", "category": "213", "available": None},
        ],
        "interactions": [
            ("7", "355908", None, 1609459200),
            ("7", "355908", None, 1609459260),
            ("8", "248676", None, 1609459320),
        ],
    },
    "instacart": {
        "items": [
            {
                "item_id": "14084",
                "title": "Almond Milk",
                "category": "dairy eggs > soy lactosefree",
            },
            {"item_id": "196", "title": 'Soda, "Old"', "category": "beverages > soft drinks"},
        ],
        "interactions": [
            ("1", "196", "91", 1296000),
            ("1", "196", "90", 0),
            ("1", "14084", "90", 0),
            ("2", "14084", "93", 0),
            ("1", "196", "92", 3888000),
        ],
    },
    "otto": {
        "items": [{"item_id": "1517085"}, {"item_id": "1563459"}, {"item_id": "1309446"}],
        "interactions": [
            ("0", "1517085", None, 1609459200),
            ("0", "1563459", None, 1609459260),
            ("0", "1517085", None, 1609459270),
            ("2", "1309446", None, 1609459300),
        ],
    },
    "yelp": {
        "items": [
            {
                "item_id": "Pns2l4",
                "title": "Zoé & Söhne",
                "kinds": "Doctors, Health",
                "city": "Tucson",
                "state": "AZ",
                "price_range": "2",
            },
            {
                "item_id": "mpf3xB",
                "title": "Ship",
                "kinds": None,
                "city": "Affton",
                "state": "MO",
                "price_range": None,
            },
        ],
        "users": [
            {"user_id": "mh_-eM", "reviews": "585", "member_since": "2007-01-25 16:47:26"},
            {"user_id": "OyoGAe", "reviews": "4", "member_since": "2009-01-25 04:35:42"},
        ],
        "interactions": [
            ("mh_-eM", "Pns2l4", None, 1609459200),
            ("OyoGAe", "mpf3xB", None, 1609459260),
        ],
    },
    "steam": {
        "items": [
            {
                "item_id": "761140",
                "title": "Lost & 'Found'",
                "tags": "Strategy, RPG",
                "developer": "Koto",
                "price": "4.99",
            },
            {
                "item_id": "643980",
                "title": "Ironfort",
                "tags": "RPG",
                "developer": None,
                "price": "Free",
            },
        ],
        "interactions": [
            ("Chaos", "761140", None, 1609459200),
            ("Zoé", "643980", None, 1609545600),
        ],
    },
    "steam_australia": {
        "items": [
            {
                "item_id": "643980",
                "title": "Ironfort",
                "tags": "RPG",
                "developer": None,
                "price": "Free",
            },
            {
                "item_id": "1250",
                "title": "Lost",
                "tags": None,
                "developer": "Koto",
                "price": "4.99",
            },
        ],
        "interactions": [("7656", "1250", None, 1609459200), ("7656", "643980", None, 1609545600)],
    },
    "lastfm_1k": {
        "items": [
            {"item_id": "Zoé's 12\" Band", "title": "Zoé's 12\" Band"},
            {"item_id": "Underworld", "title": "Underworld"},
        ],
        "users": [
            {"user_id": "user_01", "gender": "m", "age": None, "country": "Japan"},
            {"user_id": "user_02", "gender": "f", "age": "24", "country": "Peru"},
        ],
        "interactions": [
            ("user_01", "Zoé's 12\" Band", None, 1609459260),
            ("user_01", "Underworld", None, 1609459200),
            ("user_02", "Zoé's 12\" Band", None, 1609545600),
        ],
    },
    "lastfm_360k": {
        "items": [
            {"item_id": "betty b.", "title": "betty b."},
            {"item_id": 'die "ä"', "title": 'die "ä"'},
        ],
        "users": [
            {
                "user_id": "00000c28",
                "gender": "f",
                "age": None,
                "country": "Germany",
                "member_since": "Feb 1, 2007",
            },
            {
                "user_id": "00001411",
                "gender": "m",
                "age": "23",
                "country": "Peru",
                "member_since": "Dec 4, 2007",
            },
        ],
        "interactions": [
            ("00000c28", "betty b.", None, 0),
            ("00000c28", 'die "ä"', None, 0),
            ("00001411", "betty b.", None, 0),
        ],
    },
    "complete_journey": {
        "items": [
            {
                "item_id": "25671",
                "title": "ICE - CRUSHED 22 LB",
                "category": "GROCERY > FRZN ICE",
                "brand": "National",
            },
            {
                "item_id": "26081",
                "title": "NO SUB",
                "category": "MISC. TRANS. > NO COMMODITY",
                "brand": "National",
            },
        ],
        "users": [
            {"user_id": "2375", "age": "65+", "income": "35-49K"},
            {"user_id": "1364", "age": "45-54", "income": "50-74K"},
        ],
        "interactions": [
            ("2375", "25671", "26984851472", 86400),
            ("2375", "26081", "26984851472", 86400),
            ("1364", "25671", "26984896261", 61430400),
        ],
    },
    "recbole": {
        "items": [
            {"item_id": "10", "title": 'Café "Zoé"', "genre": "Comedy Drama"},
            {"item_id": "020", "title": "Rain", "genre": "Drama"},
        ],
        "users": [
            {"user_id": "5", "age": "24", "gender": "M"},
            {"user_id": "6", "age": "53", "gender": "F"},
        ],
        "interactions": [("5", "10", None, 1609459200), ("6", "020", None, 1609459260)],
    },
}

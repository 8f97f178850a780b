"""Baselines that SIGMA is compared with. They are fitted on training rows only.

`Baseline.fit(data, seed)` returns a frozen dataclass with
`recommend(data, requests, k, exclude_seen, allowed)`: int32 [N, k], best first, -1 after the last
item that can be recommended.

| argument | meaning |
|---|---|
| exclude_seen | True leaves out the items of the history |
| allowed | the items that each request may get; None: all items |
"""

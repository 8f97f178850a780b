"""What SIGMA has to beat, each fitted on training rows and ranked through one function shape.

`Baseline.fit(data, ...)` returns a frozen dataclass with
`recommend(data, requests, k, keep_seen, allowed) -> int32 [N, k]`, best first, -1 where nothing
is left to recommend.
"""

"""A mapping that holds no more than its newest entries."""

from gateway.caches.newest import Newest


def test_what_was_set_longest_ago_goes_first() -> None:
    newest: Newest[str, int] = Newest(2)
    newest.update(a=1, b=2)
    newest["a"] = 3
    newest["c"] = 4
    assert dict(newest) == {"a": 3, "c": 4}
    assert list(newest) == ["a", "c"]
    assert newest.pop("a") == 3
    assert (newest.get("a"), len(newest)) == (None, 1)

"""Tables: whole for a pipe, without broken words on a terminal."""

from modelyard.cli.printing.tables import GAP, Layout, laid_out

NAMES = ("operation", "job", "verb", "host", "error")
ROWS = (
    ("0197-aaaa", "j-1", "INFER", "h-1", ""),
    ("0197-bbbb", "a-long-name-of-a-job", "DEPLOY_CREATE", "h-2", ""),
)
LEAST = ("host", "verb")


def told(table: Layout) -> list[str]:
    return [GAP.join(line).rstrip() for line in (table.header, *table.lines)]


def test_a_pipe_gets_one_line_an_item_with_every_column() -> None:
    table = laid_out(NAMES, ROWS, least=LEAST, width=None)
    assert told(table) == [
        "operation  job                   verb           host  error",
        "0197-aaaa  j-1                   INFER          h-1",
        "0197-bbbb  a-long-name-of-a-job  DEPLOY_CREATE  h-2",
    ]
    assert table.left_out == ()


def test_a_terminal_leaves_out_empty_columns_first_and_then_the_least_important() -> None:
    assert told(laid_out(NAMES, ROWS, least=LEAST, width=60))[0].split() == [
        "operation", "job", "verb", "host",
    ]  # fmt: skip
    narrow = laid_out(NAMES, ROWS, least=LEAST, width=50)
    assert told(narrow)[2] == "0197-bbbb  a-long-name-of-a-job  DEPLOY_CREATE"
    assert narrow.left_out == ("host",)
    tiny = laid_out(NAMES, ROWS, least=LEAST, width=10)
    assert told(tiny)[2] == "0197-bbbb  a-long-name-of-a-job"
    assert tiny.left_out == ("host", "verb")


def test_the_last_column_wraps_at_words_below_its_own_beginning() -> None:
    why = "no room: 3 GiB of memory are free, and 4 GiB are needed"
    rows = [("h-1", why), ("h-2", "has room")]
    assert told(laid_out(("host", "why not"), rows, width=40)) == [
        "host  why not",
        "h-1   no room: 3 GiB of memory are free,",
        "      and 4 GiB are needed",
        "h-2   has room",
    ]
    assert told(laid_out(("host", "why not"), rows, width=None))[1] == f"h-1   {why}"


def test_an_item_stays_one_line_whatever_others_wrote() -> None:
    rows = [("h-1", "two\nlines\x1b[2J and\ttabs")]
    assert told(laid_out(("host", "why"), rows, width=None))[1] == (
        "h-1   two lines\\x1b[2J and tabs"
    )


def test_a_table_without_items_shows_its_columns() -> None:
    assert told(laid_out(("job", "state"), [], width=80)) == ["job  state"]

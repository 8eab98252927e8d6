"""From py-spy's raw output to a table."""

from bench.profiling.samples import MOST_LINES, module_of, parse, table

LOOP = "run_forever (asyncio/base_events.py:593)"
RAW = f"""\
thread (7F10): MainThread;{LOOP};submit (gateway/routes.py:20);dumps (json/__init__.py:183) 30
thread (7F10): MainThread;{LOOP};submit (gateway/routes.py:20) 10
thread (7F10): MainThread;{LOOP} 20
thread (71): ThreadPoolExecutor-0_0;_worker (threads.py:1) 25
thread (72): ThreadPoolExecutor-0_11;_worker (threads.py:1) 14
thread (73): monitor;look (monitor.py:3) 1
"""


def lines_after(text: str, title: str) -> list[str]:
    """Return the lines of one ranking, without its heads."""
    lines = text.partition(f"{title}\n")[2].partition("\n\n")[0].splitlines()
    return [" ".join(line.split()) for line in lines[1:]]


def test_threads_that_differ_in_a_number_are_of_one_kind() -> None:
    stacks = parse(RAW)

    assert stacks.total() == 100
    assert stacks["ThreadPoolExecutor-0", "_worker (threads.py:1)"] == 39


def test_a_function_has_its_own_share_and_that_of_all_it_calls() -> None:
    text = table("gateway, batches", parse(RAW))

    assert text.startswith("gateway, batches\n100 samples; all shares are of these.\n")
    assert lines_after(text, "MainThread: functions") == [
        "30.0 % 30.0 % dumps (json/__init__.py:183)",
        f"20.0 % 60.0 % {LOOP}",
        "10.0 % 40.0 % submit (gateway/routes.py:20)",
    ]
    assert lines_after(text, "MainThread: modules") == [
        "30.0 % 30.0 % json/__init__.py",
        "20.0 % 60.0 % asyncio/base_events.py",
        "10.0 % 40.0 % gateway/routes.py",
    ]


def test_each_kind_of_thread_has_its_share_and_its_own_tables() -> None:
    text = table("worker", parse(RAW))

    assert " 60.0 %  MainThread\n 39.0 %  ThreadPoolExecutor-0\n  1.0 %  monitor\n" in text
    assert lines_after(text, "ThreadPoolExecutor-0: functions") == [
        "39.0 % 39.0 % _worker (threads.py:1)"
    ]


def test_a_thread_that_hardly_ran_has_no_tables() -> None:
    text = table("worker", parse(RAW + "thread (71): MainThread;work (a.py:1) 1\n"))

    assert "monitor: functions" not in text
    assert "1.0 %  monitor" in text


def test_a_function_that_calls_itself_counts_once_in_a_sample() -> None:
    walk = "walk (tree.py:1)"

    text = table("one", parse(f"thread (1): MainThread;{walk};{walk};leaf (tree.py:9) 4\n"))

    assert f"  0.0 % 100.0 %  {walk}" not in text
    assert lines_after(text, "MainThread: functions") == ["100.0 % 100.0 % leaf (tree.py:9)"]
    assert lines_after(text, "MainThread: modules") == ["100.0 % 100.0 % tree.py"]


def test_only_the_functions_with_the_most_are_listed() -> None:
    raw = "".join(f"thread (1): MainThread;f{n} (a.py:{n}) {n}\n" for n in range(1, 40))

    listed = lines_after(table("one", parse(raw)), "MainThread: functions")

    assert len(listed) == MOST_LINES
    assert listed[0].endswith("f39 (a.py:39)")


def test_what_is_no_stack_is_left_out_and_strange_frames_are_kept() -> None:
    stacks = parse("\npy-spy says something\nthread (1);<module> (<string>:1);odd 2\n")

    assert stacks == {("a thread without a name", "<module> (<string>:1)", "odd"): 2}
    assert (module_of("<module> (<string>:1)"), module_of("odd")) == ("<string>", "odd")


def test_the_shares_of_no_sample_are_nothing() -> None:
    assert table("idle", parse("")) == "idle\n0 samples; all shares are of these.\n\n"

"""Progress: a bar on a terminal, few and whole lines in a log."""

import io
import threading
import time

import pytest

from datamodules.progress import Progress, activity


class Stream(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


def standard_error(monkeypatch, terminal):
    monkeypatch.setattr("sys.stderr", stream := Stream(terminal))
    return stream


def test_a_log_has_a_line_every_ten_seconds_and_one_at_the_end(monkeypatch):
    stream = standard_error(monkeypatch, terminal=False)
    now = [1000.0]
    bar = Progress(12, "tracing", "link")
    monkeypatch.setattr(bar, "_time", lambda: now[0])
    bar.start_t = bar.last_print_t = now[0]
    for _ in range(12):
        now[0] += 4
        bar.update()
        bar.set_description_str("tracing")
    bar.close()
    *lines, last = stream.getvalue().splitlines()
    assert len(lines) == 4
    assert lines[0] == "tracing: 25 % (3 of 12), 00:12 gone, 00:36 left"
    assert last.startswith("tracing: 100 % (12 of 12), 00:48 gone")
    assert "\r" not in stream.getvalue()


def test_a_log_has_nothing_of_what_was_already_done_or_leaves_nothing(monkeypatch):
    stream = standard_error(monkeypatch, terminal=False)
    with Progress(3, "making", initial=3):
        pass
    with Progress(3, "drawing", leave=False) as bar:
        bar.update(3)
        bar.set_description_str("later", refresh=False)
    assert stream.getvalue() == ""


def test_a_log_names_the_next_step_at_once(monkeypatch):
    stream = standard_error(monkeypatch, terminal=False)
    with Progress(3, "drawing", leave=False) as bar:
        bar.announce("projecting by UMAP")
    assert stream.getvalue() == "projecting by UMAP (0 of 3 done)\n"


def wait_for(stream, text):
    until = time.monotonic() + 30
    while text not in stream.getvalue():
        assert time.monotonic() < until, stream.getvalue()
        time.sleep(0.01)


@pytest.mark.parametrize("terminal", [False, True])
def test_the_time_goes_on_where_no_step_ends(terminal, monkeypatch):
    monkeypatch.setattr("datamodules.progress._CHECK", 0.01)
    stream = standard_error(monkeypatch, terminal)
    with activity("opening the data") as bar:
        bar.start_t -= 12
        wait_for(stream, "opening the data: 00:12 gone")
        with Progress(4, "tracing", "link", leave=False) as inner:
            inner.start_t -= 15
            wait_for(stream, "tracing: ")
            told = stream.getvalue().count("opening")
            bar._written, bar.last_print_t = -1e9, -1e9
            time.sleep(0.1)
            assert stream.getvalue().count("opening") == told  # the inner one speaks
        wait_for(stream, "gone\nopening" if not terminal else "opening")
    assert not [thread for thread in threading.enumerate() if thread is bar._clock]


def test_other_processes_and_disabled_bars_say_nothing(monkeypatch):
    stream = standard_error(monkeypatch, terminal=False)
    with Progress(2, "tracing", disable=True) as bar:
        assert not bar.due
    monkeypatch.setenv("LOCAL_RANK", "1")
    with Progress(2, "tracing") as bar:
        bar.update(2)
    assert stream.getvalue() == ""


def test_a_terminal_has_a_bar_that_is_drawn_over(monkeypatch):
    stream = standard_error(monkeypatch, terminal=True)
    with Progress(2, "tracing", "link") as bar:
        bar.update()
        bar.announce("tracing more")
    assert stream.getvalue().count("\r") >= 2
    assert stream.getvalue().count("\n") == 1
    assert "1/2" in stream.getvalue()

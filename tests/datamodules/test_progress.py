"""Progress: a bar on a terminal, few and whole lines in a log."""

import io

from datamodules.progress import Progress


class Stream(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


def standard_error(monkeypatch, terminal):
    monkeypatch.setattr("sys.stderr", stream := Stream(terminal))
    return stream


def test_a_log_has_a_line_every_half_minute_and_one_at_the_end(monkeypatch):
    stream = standard_error(monkeypatch, terminal=False)
    now = [1000.0]
    bar = Progress(12, "tracing", "link")
    monkeypatch.setattr(bar, "_time", lambda: now[0])
    bar.start_t = bar.last_print_t = now[0]
    for _ in range(12):
        now[0] += 10
        bar.update()
        bar.set_description_str("tracing")
    bar.close()
    *lines, last = stream.getvalue().splitlines()
    assert len(lines) == 4
    assert lines[0] == "tracing: 25 % (3 of 12), 00:30 gone, 01:30 left"
    assert last.startswith("tracing: 100 % (12 of 12), 02:00 gone")
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
        bar.say("projecting by UMAP")
    assert stream.getvalue() == "projecting by UMAP (0 of 3 done)\n"


def test_a_terminal_has_a_bar_that_is_drawn_over(monkeypatch):
    stream = standard_error(monkeypatch, terminal=True)
    with Progress(2, "tracing", "link") as bar:
        bar.update()
        bar.say("tracing more")
    assert stream.getvalue().count("\r") >= 2
    assert stream.getvalue().count("\n") == 1
    assert "1/2" in stream.getvalue()

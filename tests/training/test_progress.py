"""Progress bars: none before the first thing is done, and none left when all is."""

import io
import re

from rich.console import Console

from training.progress import ProgressBars


def test_bars_appear_with_the_first_thing_done_and_go_when_all_is() -> None:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=80)
    with ProgressBars(console=console) as bars:
        reading, judging = bars.add("reading"), bars.add("judging", total=2)
        reading.expect(1)
        assert shown.getvalue() == ""
        reading.advance()
        assert "reading" in shown.getvalue()
        judging.advance(2)
        at_end = shown.getvalue()
        assert re.search(r"judging.*2/2", at_end)
        console.print("now there is room for another display")
    assert shown.getvalue() == at_end + "now there is room for another display\n"


def test_a_mistake_before_the_first_leaves_nothing() -> None:
    shown = io.StringIO()
    with ProgressBars(console=Console(file=shown)) as bars:
        bars.add("reading", total=3)
        bars.stop()
    assert shown.getvalue() == ""

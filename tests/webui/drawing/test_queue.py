import threading

import pytest

from tests.webui.engine.waiting import patiently
from webui.drawing.queue import Cancelled, DrawingQueue


def test_first_come_first_served_and_who_stops_leaves() -> None:
    queue, order, told = DrawingQueue(), list[str](), list[tuple[str, int]]()
    stops = {name: threading.Event() for name in "abcd"}
    held = {name: threading.Event() for name in "abcd"}

    def draw(name: str) -> None:
        try:
            with queue.turn(stops[name], lambda before: told.append((name, before))):
                order.append(name)
                held[name].wait()
        except Cancelled:
            order.append(f"{name} left")

    threads = {name: threading.Thread(target=draw, args=name) for name in "abcd"}
    threads["a"].start()
    patiently(lambda: order == ["a"])
    for place, name in enumerate("bcd", start=1):
        threads[name].start()
        patiently(lambda expected=(name, place): expected in told)
    stops["b"].set()
    patiently(lambda: order == ["a", "b left"])
    for name in "ad":
        held[name].set()
    patiently(lambda: order[-1] == "c")
    assert ("d", 2) in told
    held["c"].set()
    for thread in threads.values():
        thread.join()
    assert order == ["a", "b left", "c", "d"]


def test_who_stopped_before_never_begins() -> None:
    stop = threading.Event()
    stop.set()
    queue = DrawingQueue()
    with pytest.raises(Cancelled), queue.turn(stop, lambda _: None):
        pytest.fail("it began")
    with queue.turn(threading.Event(), lambda _: pytest.fail("it waited")):
        pass

import threading

import pytest

from tests.webui.engine.waiting import patiently
from webui.drawing.queue import Cancelled, DrawingQueue


def test_the_queue_is_in_order_and_stopped_requests_leave() -> None:
    queue, order, places = DrawingQueue(), list[str](), list[tuple[str, int]]()
    stops = {name: threading.Event() for name in "abcd"}
    held = {name: threading.Event() for name in "abcd"}

    def draw(name: str) -> None:
        try:
            with queue.turn(stops[name], lambda before: places.append((name, before))):
                order.append(name)
                held[name].wait()
        except Cancelled:
            order.append(f"{name} left")

    threads = {name: threading.Thread(target=draw, args=name) for name in "abcd"}
    threads["a"].start()
    patiently(lambda: order == ["a"])
    for place, name in enumerate("bcd", start=1):
        threads[name].start()
        patiently(lambda expected=(name, place): expected in places)
    stops["b"].set()
    patiently(lambda: order == ["a", "b left"])
    patiently(lambda: ("d", 2) in places)
    for name in "ad":
        held[name].set()
    patiently(lambda: order[-1] == "c")
    held["c"].set()
    for thread in threads.values():
        thread.join()
    assert order == ["a", "b left", "c", "d"]


def test_a_request_stopped_in_the_queue_never_starts() -> None:
    stop = threading.Event()
    stop.set()
    queue = DrawingQueue()
    with pytest.raises(Cancelled), queue.turn(stop, lambda _: None):
        pytest.fail("it began")
    with queue.turn(threading.Event(), lambda _: pytest.fail("it waited")):
        pass

"""Work ahead of its use: done beside other work, once, and its errors come where it is taken."""

import threading

import pytest

from engine.train.ahead import Ahead


def test_what_is_prepared_is_done_beside_and_once():
    ahead, here, done = Ahead(beside=True), threading.get_ident(), []

    def work():
        done.append(threading.get_ident())
        return "said"

    ahead.prepare(1, work)
    ahead.prepare(2, work)
    assert (ahead.take(1, work), ahead.take(2, work)) == ("said", "said")
    assert len(done) == 2
    assert here not in done
    assert ahead.take(3, work) == "said"
    assert done[-1] == here


def test_alone_all_is_done_when_it_is_needed():
    ahead, done = Ahead(beside=False), []
    ahead.prepare(1, lambda: done.append("early"))
    assert not done
    ahead.take(1, lambda: done.append("now"))
    assert done == ["now"]


def test_what_nobody_took_is_let_go_of_and_waiting_ends_all():
    ahead, let = Ahead(beside=True), threading.Event()
    ahead.prepare(1, let.wait)
    for key in (2, 3, 4):
        ahead.prepare(key, lambda key=key: key)
    let.set()
    ahead.wait()
    assert ahead.take(4, lambda: "anew") == 4
    assert ahead.take(1, lambda: "anew") == "anew"
    ahead.forget()
    assert ahead.take(3, lambda: "anew") == "anew"


def test_an_error_comes_where_the_result_is_taken():
    ahead = Ahead(beside=True)
    ahead.prepare(1, lambda: 1 / 0)
    ahead.wait()
    with pytest.raises(ZeroDivisionError):
        ahead.take(1, lambda: 0)

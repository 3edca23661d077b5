"""Networks that are known by what they have said."""

import numpy as np

from engine.graph.agreement import Remembered
from engine.runtime.sessions import session
from engine.target import Target


def test_what_is_remembered_holds_no_memory_of_the_network(residual_cnn, images, lent):
    feeds = [{"image": images(2).astype(np.float32)}, {"image": images(1).astype(np.float32)}]
    says = Remembered(lambda: session(residual_cnn(), Target()))
    says.hear(feeds)
    assert lent() == 0
    again = session(residual_cnn(), Target())
    assert all(np.array_equal(says.run(feed)["scores"], again.run(feed)["scores"]) for feed in feeds)

"""Text as a terminal may show it."""

import re

from rich.text import Text

# A network's node names are its author's; none of them may steer the reader's terminal.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def safe_text(text: object, style: str = "") -> Text:
    """Give a text that is shown as it is: no markup in it counts, no control character gets through."""
    return Text(CONTROL.sub("\N{REPLACEMENT CHARACTER}", str(text)), style=style)

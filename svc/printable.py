"""Text from outside that is to be shown: on a terminal, in a log line, in a table."""


def printable(text: str) -> str:
    """The text without anything that is not printable: line ends, escape sequences, what turns the direction of writing."""
    return text if text.isprintable() else "".join(one if one.isprintable() else _escaped(one) for one in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()

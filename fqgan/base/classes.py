"""Classes as users name them."""

from __future__ import annotations

from fqgan.base.errors import UserError
from fqgan.base.schema import did_you_mean


def drawn_classes(text: str, count: int, names: tuple[str, ...]) -> tuple[int, ...]:
    """What a generator of `count` classes shall draw: as `chosen_classes`, but -1, no class, for the word `none`
    (unless a class is called so), and for `all` where there are no classes."""
    if (text == "none" and text not in names) or (text == "all" and not count):
        return (-1,)
    if not count:
        raise UserError(f"--classes {text}: this generator is unconditional, it has no classes: leave --classes out")
    return chosen_classes(text, count, names)


def chosen_classes(text: str, count: int, names: tuple[str, ...]) -> tuple[int, ...]:
    """Class numbers of `all`, or of numbers and names separated by commas (a single name may hold commas itself).
    `UserError` for one that is unknown."""
    if text == "all":
        return tuple(range(count))
    if text in names:
        return (names.index(text),)
    chosen: list[int] = []
    for word in (part.strip() for part in text.split(",")):
        if word.isascii() and word.isdigit():
            if int(word) >= count:
                raise UserError(f"--classes: there is no class {word}, the generator has classes 0 to {count - 1}")
            chosen.append(int(word))
        elif word in names:
            chosen.append(names.index(word))
        elif names:
            raise UserError(f"--classes: unknown class {word!r}{did_you_mean(word, names)}")
        else:
            raise UserError(f"--classes: unknown class {word!r}: this generator's classes have numbers only, no names")
    return tuple(chosen)

"""Sentences that judge: each carries its numbers, and stops the notebook in which it is no longer true.

A chapter that says "the interval is better" says so of numbers that it has just computed. Written as prose, the
sentence stays when the numbers turn; written as a verdict, it fails with them, and the book is not built.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import SupportsFloat

SWITCH = "MUSC_VERDICTS"
"""Environment variable: "report" marks a false verdict instead of stopping, for a notebook run with other parameters
than the book's, on whose data the sentence need not hold."""


class FalseVerdict(AssertionError):
    """A sentence that its own numbers contradict; the text names the sentence and the way out."""


@dataclass(frozen=True)
class Verdict:
    """Text that was found true; as a cell's last value it is shown as a paragraph, and `glue` puts it in prose."""

    text: str

    def __add__(self, other: Verdict) -> Verdict:
        """Both sentences, in one paragraph."""
        return Verdict(f"{self.text} {other.text}")

    def __repr__(self) -> str:
        return self.text

    def _repr_markdown_(self) -> str:
        return self.text


def verdict(sentence: str, *claims: SupportsFloat) -> Verdict:
    """The sentence, if every claim about its numbers is true.

    Args:
        sentence: Markdown that names the numbers it judges, rounded as they are to be read: an f-string.
        claims: what the sentence says of them, as comparisons; a claim about NaN is false.

    Raises:
        FalseVerdict: a claim is false. With the environment variable MUSC_VERDICTS=report the sentence is marked as
            false instead: for a run with other data than the sentence was written about.
        ValueError: the sentence names no number, or nothing is claimed.

    Example:
        >>> interval, mean = 94.0, 87.2
        >>> verdict(f"The interval gives {interval:.1f} %, the mean {mean:.1f} %: it is better.", interval > mean)
        The interval gives 94.0 %, the mean 87.2 %: it is better.
        >>> verdict(f"The interval gives {mean:.1f} %: it is better.", mean > interval)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        musc.verdicts.FalseVerdict: not true any more: "The interval gives 87.2 %: it is better.". Mend ...
    """
    if not claims or not re.search(r"\d", sentence):
        raise ValueError(f"{sentence!r}: a verdict names the numbers that it judges, and claims something of them.")
    wrong = [n for n, claim in enumerate(claims, 1) if not claim]
    if not wrong:
        return Verdict(sentence)
    if os.environ.get(SWITCH) == "report":
        return Verdict(f"✗ *With these parameters the following is **not** so:* {sentence}")
    which = f" (claim {', '.join(map(str, wrong))} of {len(claims)})" if len(claims) > 1 else ""
    raise FalseVerdict(
        f'not true any more: "{sentence}"{which}. Mend the sentence or what it is about; on other data than the '
        f"book's, set the environment variable {SWITCH}=report to go on."
    )


def paper_here_why(paper: str, here: Verdict, why: Verdict) -> Verdict:
    """A box for a claim of the paper that does not hold on the data at hand: what it says, what was measured, and why.

    paper: with the paper's own numbers and where they stand. here, why: verdicts, for both are measured.

    Example:
        >>> print(paper_here_why("Tab. 4: better.", verdict("3 > 2: worse.", 3 > 2), verdict("N = 5: few.", 5 < 10)))
        > **Paper.** Tab. 4: better.
        >
        > **Here.** 3 > 2: worse.
        >
        > **Why.** N = 5: few.
    """
    parts = {"Paper": paper, "Here": here.text, "Why": why.text}
    return Verdict("\n>\n".join(f"> **{name}.** {' '.join(text.split())}" for name, text in parts.items()))

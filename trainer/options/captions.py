"""Options that change captions from step to step, with their trade-offs."""

from dataclasses import dataclass

from loldu.options import option


@dataclass(frozen=True)
class CaptionsConfig:
    """How the captions of the concept's pictures change from step to step."""

    # Share of the concept's rows that are trained with an empty prompt: the look is learned without
    # the word too, as a style needs it (0.05-0.1 is usual), and so is the background. 0 turns it
    # off.
    caption_dropout: float = option(0.0, at_least=0, at_most=1)
    # Probability that a tag (a part of a caption between commas) is left out: each tag is learned
    # by itself, and a dropped one is learned with the token. 0 turns it off.
    tag_dropout: float = option(0.0, at_least=0, below=1)
    # Put the tags of a caption into another order each time, so that no order is learned. Sentences
    # with commas lose their sense.
    shuffle_tags: bool = False
    # The first tags of a caption, which are neither shuffled nor dropped: put the token there.
    keep_tags: int = option(1, at_least=0)

"""The metrics that are shipped. Their functions are imported on use, for they need torch."""

from eval.metrics.metric import Metric, Sample, Tensor, register


class Likeness(Metric):
    """Mean cosine of each generated picture with the real ones, by the one encoder of a subclass.

    Source: DreamBooth (arXiv:2208.12242), section 4.2.
    """

    aspect = "Looks like the concept"
    against = "real"
    balance = 0.5

    def scores(self, sample: Sample) -> Tensor:
        """Return a cosine for each generated picture."""
        from eval.metrics.functional import image_similarities

        (encoder,) = self.encoders
        assert sample.real is not None
        return image_similarities(
            sample.generated[encoder],
            sample.real[encoder],
            pairs=sample.pairs,
            exclude_self=sample.exclude_self,
        )


@register
class Dino(Likeness):
    """Likeness by DINO features."""

    name = "dino"
    title = "DINO"
    meaning = "likeness to real pictures in shape and detail"
    encoders = ("dino",)


@register
class ClipI(Likeness):
    """Likeness by CLIP's picture features."""

    name = "clip_i"
    title = "CLIP-I"
    meaning = "likeness to real pictures in kind and color"
    encoders = ("clip",)


@register
class ClipT(Metric):
    """Cosine of each picture with its prompt, by CLIP.

    Source: DreamBooth (arXiv:2208.12242), section 4.2.
    """

    name = "clip_t"
    title = "CLIP-T"
    aspect = "Follows the prompt"
    meaning = "agreement with the prompt, without the rare token"
    against = "prompt"
    encoders = ("clip",)
    balance = 1.0

    def scores(self, sample: Sample) -> Tensor:
        """Return a cosine for each generated picture, or CLIPScore if the sample has a scale."""
        from eval.metrics.functional import text_similarities

        assert sample.prompt_features is not None
        return text_similarities(
            sample.generated["clip"], sample.prompt_features, scale=sample.clip_t_scale
        )


@register
class Diversity(Metric):
    """Mean distance of each picture to the others of its prompt, by DINO.

    Source: DreamBooth (arXiv:2208.12242), section 4.3, which measures it by LPIPS.
    """

    name = "diversity"
    title = "diversity"
    aspect = "Draws different pictures"
    meaning = "difference between the pictures of one prompt"
    against = "siblings"
    encoders = ("dino",)
    headline = False

    def scores(self, sample: Sample) -> Tensor:
        """Return 1 less the mean cosine for each generated picture."""
        from eval.metrics.functional import diversities

        return diversities(sample.generated["dino"], sample.prompts)


@register
class Drift(Metric):
    """Distance of other prompts' pictures from the base's pictures, by CLIP."""

    name = "drift"
    title = "drift"
    aspect = "Leaves other things alone"
    meaning = "change of pictures of other prompts"
    higher_is_better = False
    against = "base"
    encoders = ("clip",)
    balance = -1.0

    def scores(self, sample: Sample) -> Tensor:
        """Return 1 less the cosine for each picture."""
        from eval.metrics.functional import drifts

        assert sample.base is not None
        return drifts(sample.generated["clip"], sample.base["clip"])

"""The metrics that are shipped. Their functions are imported on use, for they need torch."""

from dataclasses import replace

from eval.metrics.metric import Metric, Sample, Tensor, register

NEAR = {"copy_patches": 1 / 4, "copy_pixels": 1 / 2}
"""Distance of a near-copy, as a part of the smallest distance of two training pictures; chosen so
that honest pictures of the shipped concepts are rarely called copies (docs/eval.md)."""


class Likeness(Metric):
    """Mean cosine of each generated picture with the real ones, by the one encoder of a subclass.

    Source: DreamBooth (arXiv:2208.12242), section 4.2.
    """

    aspect = "Looks like the concept"
    against = "real"
    balance = 0.5

    def applies(self, sample: Sample) -> bool:
        """Return whether both sides have the features."""
        (encoder,) = self.encoders
        return super().applies(sample) and sample.real is not None and encoder in sample.real

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


class SubjectLikeness(Likeness):
    """Likeness of the subject alone: both sides without what is around it."""

    headline = False
    balance = 0.0


@register
class DinoSubject(SubjectLikeness):
    """Likeness of the subject alone by DINO features."""

    name = "dino_subject"
    title = "DINO (subject)"
    meaning = "likeness of the subject alone, without its background, by DINO"
    encoders = ("dino_subject",)


@register
class ClipISubject(SubjectLikeness):
    """Likeness of the subject alone by CLIP's picture features."""

    name = "clip_i_subject"
    title = "CLIP-I (subject)"
    meaning = "likeness of the subject alone, without its background, by CLIP"
    encoders = ("clip_subject",)


@register
class Collapse(Metric):
    """Share of pictures of several subjects that lost one, after arXiv:2603.26078."""

    name = "collapse"
    title = "subject collapse"
    aspect = "Keeps several subjects apart"
    meaning = "share that misses a subject of its prompt, or shows another one in its place"
    higher_is_better = False
    against = "real"
    encoders = ("dino_subject",)
    headline = False

    def applies(self, sample: Sample) -> bool:
        """Return whether the pictures show several subjects."""
        return len(sample.together) > 1

    def scores(self, sample: Sample) -> Tensor:
        """Return 1 for each picture that lost a subject, else 0."""
        from eval.metrics.functional import collapses

        return collapses(*zip(*sample.together, strict=True))


class Discrimination(Metric):
    """Rank of the concept's real pictures in a gallery of all subjects and their look-alikes.

    Source: Finer-Personalization Rank (arXiv:2512.19026).
    """

    aspect = "Is not mistaken for others"
    against = "gallery"
    encoders = ("dino",)
    headline = False

    def ranks(self, sample: Sample) -> tuple[Tensor, Tensor]:
        """Return average precision and top-1 hit of each generated picture, computed once."""
        from eval.metrics.retrieval import retrieval

        assert sample.gallery is not None
        assert sample.gallery_own is not None
        if "ranks" not in sample.memo:
            sample.memo["ranks"] = retrieval(
                sample.generated["dino"],
                sample.gallery["dino"],
                sample.gallery_own,
                exclude_self=sample.exclude_self,
            )
        return sample.memo["ranks"]


@register
class MeanAveragePrecision(Discrimination):
    """Average precision of each picture; its mean over pictures is the mAP."""

    name = "rank_map"
    title = "mAP"
    meaning = "own real pictures are found before those of other subjects"

    def scores(self, sample: Sample) -> Tensor:
        """Return the average precision of each generated picture."""
        return self.ranks(sample)[0]


@register
class TopOne(Discrimination):
    """Whether the most similar real picture is one of the right subject."""

    name = "rank_top1"
    title = "top-1"
    meaning = "share whose most similar real picture shows the right subject"

    def scores(self, sample: Sample) -> Tensor:
        """Return 1 for each generated picture that finds its own subject first, else 0."""
        return self.ranks(sample)[1]


class Copying(Metric):
    """Likeness to the nearest training picture, which is 1 for a copy."""

    aspect = "Is no copy"
    higher_is_better = False
    against = "training"
    headline = False

    def applies(self, sample: Sample) -> bool:
        """Return whether there are two training pictures, which tell what is not a copy."""
        training = sample.training
        if training is None or not super().applies(sample):
            return False
        return all(len(training.get(name, ())) > 1 for name in self.encoders)


@register
class PatchCopying(Copying):
    """Cosine with the nearest training picture by DINO's patches, place by place."""

    name = "copy_patches"
    title = "copy (DINO)"
    meaning = "likeness to the nearest training picture, place by place, by DINO's patches"
    encoders = ("dino_patches",)

    def scores(self, sample: Sample) -> Tensor:
        """Return the largest mean cosine over the places of the picture."""
        from eval.metrics.functional import nearest

        assert sample.training is not None
        generated, training = (rows["dino_patches"] for rows in (sample.generated, sample.training))
        return nearest(generated, training, exclude_self=sample.exclude_self)[1]


@register
class PixelCopying(Copying):
    """Correlation with the nearest training picture by pixels, after alignment."""

    name = "copy_pixels"
    title = "copy (pixels)"
    meaning = "correlation with the nearest training picture, moved or mirrored to fit best"
    encoders = ("thumbnail",)

    def scores(self, sample: Sample) -> Tensor:
        """Return the largest correlation, computed once for `NearCopies` too."""
        from eval.metrics.copying import aligned_likeness

        assert sample.training is not None
        if self.name not in sample.memo:
            sample.memo[self.name] = aligned_likeness(
                sample.generated["thumbnail"],
                sample.training["thumbnail"],
                exclude_self=sample.exclude_self,
            )
        return sample.memo[self.name]


@register
class NearCopies(Copying):
    """Share of pictures that are much nearer to a training picture than two of those are.

        score_i = 1 if 1 - likeness_i < NEAR (1 - max over j != k of likeness(r_j, r_k))

    by patches or by pixels. The largest likeness itself would be no threshold: any new picture of
    the concept exceeds it with a chance of 2 / (n + 1), for n training pictures.
    """

    name = "near_copies"
    title = "near-copies"
    meaning = "share that is far nearer to a training picture than any two of those are"
    encoders = ("dino_patches", "thumbnail")
    of_real = False

    def scores(self, sample: Sample) -> Tensor:
        """Return 1 for each picture that is a near-copy, else 0."""
        assert sample.training is not None
        own = replace(sample, generated=sample.training, exclude_self=True)
        copied: Tensor = False
        for metric in (PatchCopying(), PixelCopying()):
            limit = NEAR[metric.name] * (1 - metric.scores(own).max())
            copied = copied | (1 - metric.scores(sample) < limit)
        return copied.double()


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
class ClipTContext(ClipT):
    """Cosine of each picture with its prompt without the subject's words, by CLIP."""

    name = "clip_t_context"
    title = "CLIP-T (context)"
    meaning = "agreement with the prompt without the words for the concept"
    headline = False
    balance = 0.0

    def applies(self, sample: Sample) -> bool:
        """Return whether the prompts and the class are known."""
        return super().applies(sample) and sample.context_features is not None

    def scores(self, sample: Sample) -> Tensor:
        """Return a cosine for each generated picture, or CLIPScore if the sample has a scale."""
        return super().scores(replace(sample, prompt_features=sample.context_features))


class Judged(Metric):
    """Level that a vision-language model gives a picture by a rubric, from 0 to 1.

    Source: DreamBench++ (arXiv:2406.16855), with a rubric in words of our own.
    """

    encoders = ()
    headline = False
    of_real = False

    def applies(self, sample: Sample) -> bool:
        """Return whether a judge gave every picture a level."""
        return self.name in sample.judged

    def scores(self, sample: Sample) -> Tensor:
        """Return the mean level of each generated picture."""
        return sample.judged[self.name]


@register
class JudgeConcept(Judged):
    """Level of concept preservation."""

    name = "judge_concept"
    title = "judge (concept)"
    aspect = "Looks like the concept"
    meaning = "how well a judge model finds the subject kept"
    against = "real"


@register
class JudgePrompt(Judged):
    """Level of prompt following."""

    name = "judge_prompt"
    title = "judge (prompt)"
    aspect = "Follows the prompt"
    meaning = "how well a judge model finds the prompt followed"
    against = "prompt"


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


@register
class DinoDrift(Metric):
    """Distance of other prompts' pictures from the base's pictures, by DINO, from 0 to 1.

        score_i = (1 - cos(adapted_i, base_i)) / 2

    Source: PEFT, `method_comparison/image-gen/run.py`, with DINOv2.
    """

    name = "drift_dino"
    title = "DINO drift"
    aspect = "Leaves other things alone"
    meaning = "change of pictures of other prompts by DINO, from 0 to 1, as PEFT measures it"
    higher_is_better = False
    against = "base"
    encoders = ("dino",)
    headline = False

    def scores(self, sample: Sample) -> Tensor:
        """Return half of 1 less the cosine for each picture."""
        from eval.metrics.functional import drifts

        assert sample.base is not None
        return drifts(sample.generated["dino"], sample.base["dino"]) / 2

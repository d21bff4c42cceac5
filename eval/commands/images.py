"""`python -m eval images`: folders of generated pictures against folders of real ones."""

from eval.config import ImagesConfig
from eval.protocols.folders import generated_pictures, subject_folders
from eval.protocols.score import Scorer, Subject, score_subjects
from eval.report.output import refuse_to_overwrite, write
from eval.report.page import result_page
from eval.report.result import markdown_table, score_rows
from loldu.pictures.folder import list_images


def evaluate_images(config: ImagesConfig) -> None:
    """Score the folders, and leave table and files.

    Raises:
        LoLDUError: If folders, pictures, prompts or weights are not as they must be.
    """
    output = config.output
    refuse_to_overwrite([output.json, output.html], overwrite=output.overwrite)
    subjects = [
        Subject(
            name, generated_pictures(generated, config.prompts, config.prompt), list_images(real)
        )
        for name, (generated, real) in subject_folders(config.generated, config.real).items()
    ]
    result = score_subjects(Scorer(config.models), subjects, config.protocol, config.token)
    write(
        output,
        markdown_table(score_rows(result)),
        result.as_json(),
        lambda: result_page("Scored pictures", result),
    )

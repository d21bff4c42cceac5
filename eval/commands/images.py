"""`python -m eval images`: score folders of generated pictures against folders of real ones."""

from eval.config import ImagesConfig
from eval.protocols.folders import generated_pictures, subject_folders
from eval.protocols.score import FeatureReader, Subject, score_subjects
from eval.report.limits import check_limits
from eval.report.output import refuse_to_overwrite, write
from eval.report.page import result_page
from eval.report.tables import markdown_table, result_rows
from eval.report.verdict import verdict_json
from loldu.pictures.folder import list_images


def evaluate_images(config: ImagesConfig) -> str:
    """Score the folders; print the table and write the files.

    Returns:
        A sentence about scores that failed their limits, or "".

    Raises:
        LoLDUError: If folders, pictures, prompts or weights are missing or invalid.
    """
    output = config.output
    refuse_to_overwrite([output.json, output.html], overwrite=output.overwrite)
    folders = subject_folders(config.generated, config.real)
    trained = subject_folders(config.generated, config.training) if config.training else {}
    others = list_images(config.look_alikes) if config.look_alikes else []
    subjects = [
        Subject(
            name,
            generated_pictures(generated, config.prompts, config.prompt),
            list_images(real),
            list_images(trained[name][1]) if trained else (),
            others,
            config.class_name,
        )
        for name, (generated, real) in folders.items()
    ]
    result = score_subjects(FeatureReader(config.models), subjects, config.protocol, config.token)
    checked, failed = check_limits(config.limits.fail_under, result.means)
    write(
        output,
        markdown_table(result_rows(result)),
        {**result.as_json(), "verdict": verdict_json(result.verdict), "limits": checked},
        lambda: result_page("Scored pictures", result),
    )
    return failed

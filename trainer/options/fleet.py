"""Options of a training on several machines."""

from dataclasses import dataclass

from loldu.options import option


@dataclass(frozen=True)
class FleetConfig:
    """Training many --concepts on many machines."""

    # Train the --concepts on a Ray cluster, in passes of some concepts each. ray: the cluster of
    # RAY_ADDRESS or of this machine, started if there is none. ray://HOST:PORT: another one, whose
    # machines have loldu and see the same folders. A pass that dies with its machine goes on
    # elsewhere from its last checkpoint; --resume latest goes on after this command has died. The
    # concept files are gathered in the folder concepts of the output_dir.
    on: str | None = option(None, saved=False, needs="concepts")
    # Concepts of a pass: more share each step of the base, and need more memory. A pass that does
    # not fit is trained in halves, and so are those that come after it.
    concepts_a_pass: int = option(8, at_least=1, saved=False, needs="on")

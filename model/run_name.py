"""The names that a run may have."""

from ..pipeline.stage.options import check_plain_name


def check_run_name(name: str) -> str | None:
    """Return None if `name` is a valid run name, else the rule that it breaks."""
    if "+" in name:
        return "not contain '+', which joins the runs of an ensemble"
    return check_plain_name(name)

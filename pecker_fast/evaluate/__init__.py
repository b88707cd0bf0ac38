"""Judging generated images: classifier, Fréchet distance, forgetting, pictures, the report.

>>> from pecker_fast.evaluate import judge
>>> found = judge("RUN", classifier="clf", forget="cat", per_class=500)
>>> found.evaluation.forget_accuracy, found.to_dict()["unlearning_accuracy"]
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pecker_fast.evaluate.judging import judge
    from pecker_fast.evaluate.prompt_judging import judge_prompts

__all__ = ["judge", "judge_prompts"]


def __getattr__(name: str) -> Any:
    if name == "judge":  # torch and diffusers load on its first use
        from pecker_fast.evaluate.judging import judge

        return judge
    if name == "judge_prompts":
        from pecker_fast.evaluate.prompt_judging import judge_prompts

        return judge_prompts
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""How a run's policy was made, in words: for the model card, whose reader has no config."""

from charactertrain.config import RunConfig


def method(config: RunConfig) -> str:
    """One paragraph, true of this run: its controls, comparisons, judge and objective."""
    return " ".join([_messages(config), _comparisons(config), _policy(config)])


def _messages(config: RunConfig) -> str:
    if config.prompts.file_use == "replace":
        return "The messages are a researcher's own, for which the traits matter."
    others = " and a researcher's own were added" if config.prompts.file is not None else ""
    return f"The model wrote messages for which each trait matters{others}."


def _comparisons(config: RunConfig) -> str:
    if config.pairs.file_use == "replace":
        return "Comparisons of responses are a researcher's own."
    shown = "while it was shown the traits"
    by_what = "by how well they fit them"
    if config.control == "neutral":
        shown, by_what = "without being shown any trait", "by which is the better answer"
    settings = config.rankings
    judge = settings.endpoint.model if settings.endpoint is not None else settings.judge_model
    ranked = "ranked its own responses" if judge is None else f"{judge} ranked the responses"
    lines = [f"It wrote several responses to each {shown}, and {ranked} {by_what}."]
    if config.pairs.reviews is not None:
        lines.append("People corrected some of the rankings.")
    if config.pairs.file is not None:
        lines.append("A researcher's own comparisons were added.")
    return " ".join(lines)


def _policy(config: RunConfig) -> str:
    kind = config.policy.objective.kind
    if kind == "dpo":
        learnt = (
            "The policy learnt from the comparisons directly, by direct preference optimisation"
        )
    else:
        labels = "those comparisons"
        if config.control == "placebo":
            labels += " with their labels shuffled"
        learnt = f"A preference model was trained on {labels}, and the policy was "
        learnt += (
            "trained on the best of several responses by it"
            if kind == "best_of_n"
            else "optimised against it"
        )
    control = {
        "neutral": " This is a control, which is to take on no trait.",
        "placebo": " This is a control: labels that mean nothing are to teach nothing.",
        None: "",
    }[config.control]
    left_out = ""
    if config.ablate:
        left_out = f" Left out of the training: {', '.join(config.ablate)}."
    return f"{learnt}, with no trait in its prompt.{control}{left_out}"

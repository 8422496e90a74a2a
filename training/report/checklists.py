"""What reviewers ask for: the items of CLAIM 2024 and TRIPOD+AI, and the answers that a run can give.

CLAIM: Tejani et al. 2024, Radiology: Artificial Intelligence 6(4):e240300. TRIPOD+AI: Collins et al. 2024, BMJ
385:e078378. The wording of the items is ours and short; the published lists are what counts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

#: Stands where a run knows nothing.
MISSING: Final = "Not reported by this program: to be filled in by the authors."


@dataclass(frozen=True)
class Item:
    """One item of a checklist.

    Attributes:
        number: As published.
        section: Its heading.
        asks: What it asks for, in our words.
        known: Names of the report's own statements that answer it; see `training.report.statements`.
        facts: Sections, or words in the names of rows, of the facts that answer it.
        lacks: What the authors must add although the run knows a part.
    """

    number: str
    section: str
    asks: str
    known: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()
    lacks: str = ""


@dataclass(frozen=True)
class Answer:
    """An item and what the run says to it; an empty answer is missing."""

    item: Item
    answer: str
    lacks: str


def fill_in(
    items: tuple[Item, ...],
    *,
    known: Mapping[str, str],
    facts: Mapping[str, Mapping[str, str]],
    lacking: Mapping[str, str] | None = None,
) -> tuple[Answer, ...]:
    """Answer a checklist as far as a run can.

    Args:
        items: `CLAIM_2024` or `TRIPOD_AI`.
        known: The report's own statements by name.
        facts: What the run is known by: rows by section. A word of `Item.facts` picks a section of that name and every
            row with that word in its name.
        lacking: By name of a statement, what this run was not told and the authors must add.
    """
    missing = lacking or {}
    answers = []
    for item in items:
        said = [known[name] for name in item.known if known.get(name)]
        said += [row for word in item.facts for row in _rows(facts, word)]
        lacks = [item.lacks, *(missing.get(name, "") for name in item.known)]
        answers.append(
            Answer(item, " ".join(dict.fromkeys(said)), "; ".join(dict.fromkeys(filter(None, lacks))) if said else "")
        )
    return tuple(answers)


def _rows(facts: Mapping[str, Mapping[str, str]], word: str) -> list[str]:
    return [
        f"{name}: {text}" + ("" if text.endswith(".") else ".")
        for section, rows in facts.items()
        for name, text in rows.items()
        if text and (section.casefold() == word or word in name.casefold())
    ]


CLAIM_2024: Final = (
    Item("1", "Title", "Say that the study uses AI, and of which kind", ("kind",), lacks="the title"),
    Item("2", "Abstract", "Structured abstract of design, methods, results and conclusions"),
    Item("3", "Introduction", "Background, and the role the AI is meant to have in care", ("use",), lacks="background"),
    Item("4", "Introduction", "Aims and hypotheses"),
    Item("5", "Study design", "Prospective or retrospective"),
    Item("6", "Study design", "Goal of the study", ("goal",), lacks="the question that the study is to answer"),
    Item("7", "Data", "Sources of the data", (), ("data set", "synthetic"), lacks="sites, dates and consent"),
    Item("8", "Data", "Who was included and who was left out, and why", (), ("left out",), lacks="criteria, and why"),
    Item("9", "Data", "Preprocessing", ("preprocessing",), ("preprocessing", "input size")),
    Item("10", "Data", "Selection of parts of the data", (), ("left out",), lacks="why these folders"),
    Item("11", "Data", "De-identification", ("privacy",), lacks="how the pictures were de-identified"),
    Item("12", "Data", "Missing data", ("missing data",), lacks="data missing before the pictures were collected"),
    Item("13", "Data", "How the pictures were acquired: device, protocol", (), ("view",), lacks="device and protocol"),
    Item(
        "14", "Reference standard", "How the truth was established", ("truth",), lacks="who or what decided the class"
    ),
    Item("15", "Reference standard", "Why this reference standard was chosen"),
    Item("16", "Reference standard", "Who annotated, with which qualification"),
    Item("17", "Reference standard", "How the test set was annotated"),
    Item("18", "Reference standard", "Variability between and within readers"),
    Item("19", "Data partitions", "How data were assigned to the parts", ("partitions",), ("design",)),
    Item("20", "Data partitions", "At which level the parts are disjoint", ("disjoint",)),
    Item("21", "Testing data", "Intended sample size and its reason", ("size",), lacks="the reason for this size"),
    Item("22", "Model", "Description of the model, its input and output", ("output",), ("model",)),
    Item("23", "Model", "Software, libraries and their versions", (), ("software",)),
    Item("24", "Model", "How the parameters were initialised", (), ("starting weights",)),
    Item("25", "Training", "Training approach: augmentation, hyperparameters", (), ("training",)),
    Item("26", "Training", "How the final model was selected", (), ("epochs",)),
    Item("27", "Training", "Ensembling", (), ("ensemble",)),
    Item("28", "Evaluation", "Measures of performance", ("measures",)),
    Item("29", "Evaluation", "Statistical uncertainty", ("intervals",)),
    Item("30", "Evaluation", "Robustness or sensitivity analysis", ("shortcuts",), lacks="subgroups, devices, sites"),
    Item(
        "31", "Evaluation", "Methods of explanation, and their validation", ("explanation",), lacks="their validation"
    ),
    Item("32", "Evaluation", "Evaluation on internal data", ("internal",)),
    Item("33", "Evaluation", "Testing on external data", ("external",)),
    Item("34", "Evaluation", "Registration of a clinical trial"),
    Item("35", "Results: data", "Numbers included and excluded", ("counts",), lacks="those excluded beforehand"),
    Item("36", "Results: data", "Demographic and clinical characteristics of each part"),
    Item("37", "Results: performance", "Performance with its uncertainty", ("performance",)),
    Item("38", "Results: performance", "Diagnostic performance and its precision", ("diagnostic",)),
    Item("39", "Results: performance", "Analysis of failures", ("failures",), lacks="what these cases have in common"),
    Item("40", "Discussion", "Limitations", ("limits",), lacks="limitations of the study itself"),
    Item("41", "Discussion", "Implications for practice"),
    Item("42", "Other information", "Where the full protocol can be read"),
    Item(
        "43",
        "Other information",
        "Availability of software, model and data",
        (),
        ("sha-256", "model file", "digest of the data"),
        lacks="where",
    ),
    Item("44", "Other information", "Funding, and the role of who gave it"),
)

TRIPOD_AI: Final = (
    Item("1", "Title", "Develops or evaluates a model, for whom and for what outcome", ("goal",), lacks="the title"),
    Item("2", "Abstract", "Abstract by the checklist for abstracts"),
    Item("3a", "Background", "Health care context, and existing models"),
    Item("3b", "Background", "Target population and purpose in the pathway of care", ("use",), lacks="the population"),
    Item("3c", "Background", "Known health inequalities between groups"),
    Item(
        "4", "Objectives", "Objectives: development, validation or both", ("goal",), lacks="the study's own objectives"
    ),
    Item("5a", "Data", "Sources of data for development and evaluation", (), ("data set", "synthetic"), lacks="origin"),
    Item("5b", "Data", "Dates of the data"),
    Item("6a", "Participants", "Setting, number and place of centres"),
    Item("6b", "Participants", "Eligibility"),
    Item("6c", "Participants", "Treatments received, where they matter"),
    Item(
        "7",
        "Data preparation",
        "Preprocessing, and whether alike for all groups",
        ("preprocessing",),
        ("preprocessing", "input size"),
    ),
    Item(
        "8a", "Outcome", "The outcome, how and when it was assessed", ("truth",), lacks="who or what decided, and when"
    ),
    Item("8b", "Outcome", "Qualification of the assessors, where it took judgement"),
    Item("8c", "Outcome", "Blinding of the assessment"),
    Item("9a", "Predictors", "Choice of predictors", ("predictors",)),
    Item("9b", "Predictors", "All predictors, how and when measured", ("predictors",), lacks="device and protocol"),
    Item("9c", "Predictors", "Qualification of who assessed predictors, where it took judgement"),
    Item("10", "Sample size", "How the size was arrived at", ("size",), lacks="the reason for this size"),
    Item("11", "Missing data", "How missing data were handled", ("missing data",), lacks="before collection"),
    Item("12a", "Analysis", "How data were used for development and evaluation", ("partitions", "disjoint")),
    Item("12b", "Analysis", "How predictors were handled", (), ("preprocessing", "augmentation")),
    Item("12c", "Analysis", "Kind of model, building, hyperparameters, internal validation", (), ("model", "training")),
    Item("12d", "Analysis", "Heterogeneity between clusters such as hospitals", ("clusters",), lacks="between centres"),
    Item("12e", "Analysis", "Measures of performance and plots", ("measures", "intervals")),
    Item("12f", "Analysis", "Updating or recalibration", (), ("temperature",)),
    Item("12g", "Analysis", "How predictions were computed in evaluation", ("output",)),
    Item("13", "Class imbalance", "Methods against imbalance, and recalibration after", (), ("loss",)),
    Item("14", "Fairness", "What was done for fairness between groups"),
    Item("15", "Model output", "What comes out, and how a threshold was chosen", ("output", "threshold")),
    Item(
        "16", "Training versus evaluation", "Differences between the data sets", ("external",), lacks="the differences"
    ),
    Item("17", "Ethical approval", "Approval and consent"),
    Item("18a", "Open science", "Funding"),
    Item("18b", "Open science", "Conflicts of interest"),
    Item("18c", "Open science", "Protocol"),
    Item("18d", "Open science", "Registration"),
    Item("18e", "Open science", "Availability of the data", (), ("digest of the data",), lacks="where"),
    Item("18f", "Open science", "Availability of the code", (), ("software",), lacks="where"),
    Item("19", "Patient involvement", "How patients and the public took part"),
    Item("20a", "Participants", "Flow of participants, with and without the outcome", ("counts",), lacks="exclusions"),
    Item("20b", "Participants", "Characteristics of participants, by setting"),
    Item("20c", "Participants", "Comparison of evaluation with development data"),
    Item("21", "Model development", "Participants and events in each analysis", ("counts",)),
    Item(
        "22",
        "Model specification",
        "The full model, or how to get it",
        (),
        ("sha-256", "model file"),
        lacks="access",
    ),
    Item(
        "23a",
        "Model performance",
        "Performance with intervals, in key subgroups too",
        ("performance",),
        lacks="subgroups",
    ),
    Item("23b", "Model performance", "Heterogeneity of performance between clusters", ("clusters",), lacks="centres"),
    Item("24", "Model updating", "Results of updating", (), ("temperature",)),
    Item("25", "Interpretation", "Overall interpretation, fairness included"),
    Item("26", "Limitations", "Limitations", ("limits",), lacks="limitations of the study itself"),
    Item("27a", "Usability", "How poor or missing input is dealt with", ("bad input",)),
    Item("27b", "Usability", "What users must do, and the expertise they need", ("use",), lacks="expertise needed"),
    Item("27c", "Usability", "Next steps of research"),
)

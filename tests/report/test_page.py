"""The report page: what it says, what it must never say, and what it must never load."""

import base64
import hashlib
import math
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser

import pytest

from charactertrain.report import sections
from charactertrain.report.data_view import DataView, Estimate
from charactertrain.report.effects_view import Cell
from charactertrain.report.page import render
from charactertrain.report.run_view import CostView, Setting
from charactertrain.report.svg import ARM_COLOURS
from charactertrain.report.training_view import PreferenceModelView
from charactertrain.report.view import Reply, ReportView, TraitView

HOSTILE = (
    '</style></svg></title><script>alert(1)</script><img src=x onerror=alert(1)>"\' onclick="x'
)
VOID_ELEMENTS = {"meta", "img", "br", "hr", "link", "input"}


class _Page(HTMLParser):
    """Collects the elements and the visible text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.html = html
        self.text = ""
        self.mismatched: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID_ELEMENTS:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if self.open.pop() != tag:
            self.mismatched.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def _without_everything(view: ReportView) -> ReportView:
    run = replace(view.run, model_path=None, code_version=None, hardware=None, command=None)
    return ReportView(
        run=replace(run, constitution_description=None),
        stages=(),
        verdicts=(),
        traits=(),
        cost=CostView(wall_seconds=0.0, core_hours=None, gpu_hours=None, tokens={}, note=""),
        settings=None,
        arms=(),
        missing_arms={},
        judge_note=None,
        gates=(),
        overall={},
        kinds={},
        over_seeds=None,
        attribution=(),
        probes=(),
        revealed_preferences=None,
        interval_note=None,
        samples_note=None,
        preference_model=None,
        policy=(),
        watch=None,
        template_checks=(),
        ranker_checks=(),
        data=DataView(prompts=(), rejects=None, label_strength=(), coverage=None, ranking=None),
    )


@pytest.fixture(name="page", scope="module")
def _page(view: ReportView) -> _Page:
    return _Page(render(view))


@pytest.fixture(name="bare_page", scope="module")
def _bare_page(view: ReportView) -> _Page:
    return _Page(render(_without_everything(view)))


def _row(page: _Page, head: str) -> list[str]:
    """Texts of the cells beside the first row header that reads `head`."""
    row = page.html.partition(f">{head}</th>")[2].partition("</tr>")[0]
    cells = re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL)
    return [" ".join(unescape(re.sub(r"<[^>]+>", " ", cell)).split()) for cell in cells]


def _with_first_trait(view: ReportView, **changes: object) -> ReportView:
    first, *others = view.traits
    return replace(view, traits=(replace(first, **changes), *others))  # type: ignore[arg-type]


def replies_of(text: str) -> dict[str, str]:
    return {"base": text, "policy": text}


def _everywhere(view: ReportView, text: str) -> ReportView:
    """The view with `text` in every place that a model or a user can write to."""
    first = view.traits[0]
    replies = {arm: Reply(text=text, measures={}) for arm in ("base", "policy", text)}
    sample = replace(first.samples[0], prompt=text, kind=text, replies=replies)
    probe = replace(view.probes[0], name=text, title=text, question=text)
    row = replace(probe.rows[0], condition=text, measure=text, unit=text)
    example = replace(
        probe.examples[0], condition=text, messages=((text, text),), replies=replies_of(text)
    )
    arm = replace(view.arms[-1], name=text, source=text)
    run = replace(view.run, name=text, model_name=text, constitution_description=text, command=text)
    reject = replace((view.data.rejects or ())[0], reason=text)
    changed = _with_first_trait(
        view, trait_id=text, statement=text, samples=(sample,), detector="<script>|on"
    )
    assert view.revealed_preferences
    revealed = replace(
        view.revealed_preferences,
        words={text: text},
        changes={text: {text: view.probes[0].rows[0].effects["policy"]}},
        order_agreement={text: None},
        readings=(replace(view.revealed_preferences.readings[0], arm=text, condition=text),),
    )
    return replace(
        changed,
        run=run,
        arms=(*view.arms[:-1], arm),
        missing_arms={text: text},
        gates=(replace(view.gates[0], measure=text),),
        kinds={text: view.kinds["trait"]},
        probes=(replace(probe, rows=(row,), examples=(example,)),),
        revealed_preferences=revealed,
        settings=(Setting(key=text, default=text, value=text),),
        verdicts=(replace(view.verdicts[0], text=text),),
        ranker_checks=(replace((view.ranker_checks or ())[0], reason=text),),
        data=replace(view.data, rejects=(reject,)),
    )


def test_hostile_text_appears_as_text_and_makes_no_element(
    page: _Page, light_view: ReportView
) -> None:
    hostile = _Page(render(_everywhere(light_view, HOSTILE)))
    # Name, headline, verdict and so on: every place shows the text, and none has run it.
    assert hostile.text.count(HOSTILE) >= 30
    assert {tag for tag, _ in hostile.elements} <= {tag for tag, _ in page.elements}
    names = {name for _, attributes in hostile.elements for name in attributes}
    assert not [name for name in names if name.startswith("on")]
    assert hostile.html.count("<script") == 1


def test_unsafe_characters_are_shown_as_escapes(light_view: ReportView) -> None:
    html = render(
        _everywhere(light_view, "bell \x07 override \u202e surrogate \ud800 noncharacter \uffff")
    )
    html.encode("utf-8")
    assert "bell \\u0007 override \\u202e surrogate \\ud800 noncharacter \\uffff" in html


def test_page_is_well_formed_and_every_link_leads_somewhere(page: _Page) -> None:
    assert not page.mismatched
    assert not page.open
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {attributes["href"] for _, attributes in page.elements if attributes.get("href")}
    assert targets <= {f"#{identifier}" for identifier in ids}


def test_page_loads_nothing_and_forbids_loading(page: _Page) -> None:
    assert "://" not in page.html
    assert not re.search(r"@import|url\((?!#)", page.html)
    assert not {"link", "img", "iframe", "object"} & {tag for tag, _ in page.elements}
    assert not any("src" in attributes for _, attributes in page.elements)
    policies = [
        attributes.get("content") or "" for tag, attributes in page.elements if tag == "meta"
    ]
    assert any("default-src 'none'" in policy for policy in policies)


def test_page_allows_its_one_script_by_its_hash_and_no_other(page: _Page) -> None:
    (script,) = re.findall(r"<script>(.*?)</script>", page.html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = (
        attributes["content"]
        for _, attributes in page.elements
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    assert f"script-src 'sha256-{digest}';" in policy
    assert "fetch(" not in script
    assert "innerHTML" not in script


def test_same_view_gives_same_bytes(page: _Page, view: ReportView) -> None:
    assert render(replace(view)) == page.html


def test_numbers_appear_as_given(page: _Page) -> None:
    for given in (
        *("-0.231", "0.083", "+0.314", "[0.280, 0.348]", "192 / 64", "0.004", "+0.157"),
        *("0.954", "[0.893, 1.021]", "at most 1.2", "0.64", "19 min 8 s", "41,312", "118,245"),
        *(
            "17 tied, 9 turned by the order, 3 unscored, 0.78 [0.73, 0.83] alike in both orders",
            "policy.num_steps",
            "/runs/demo-dpo",
        ),
        *("28.4", "27.1", "-1.3", "[-3.2, 0.6]", "0.073", "[0.067, 0.080]"),
        *("0.687", "[0.661, 0.713]", "0.561", "517 / 86", "0.108", "0.221", "1.624"),
        *("+0.126", "[0.090, 0.162]", "0.604", "+0.083", "[0.037, 0.129]", "[0.096, 0.125]"),
        *("0.621", "0.604", "0.684", "0.667", "label from 0.60 to 0.90", "0.652", "0.613"),
        *("at least 0.550", "at most 0.080", "[0.481, 0.581]", "+0.183", "[0.121, 0.245]"),
        *("64 %", "187", "0.143 [0.106, 0.180]", "+0.0021", "30 of 48", "9 of 12", "768"),
        *("0.776 [0.757, 0.795]", "0.648 [0.620, 0.676]", "17 general prompts were left out"),
        *("0.631", "0.034", "+0.597", "0.979", "211", "near-duplicate", "2 min 44 s"),
        "most traits rose: 2 of 4",
        "python -m charactertrain experiment=demo run.dir=runs/demo",
    ):
        assert given in page.text, given


def _with_texts(view: ReportView, detector: str | None, **texts: str) -> str:
    replies = {arm: Reply(text=text, measures={}) for arm, text in texts.items()}
    sample = replace(view.traits[0].samples[0], replies=replies)
    return render(_with_first_trait(view, samples=(sample,), detector=detector))


def test_detector_matches_are_marked_in_both_responses(light_view: ReportView) -> None:
    html = _with_texts(light_view, "!+", base="no & yes! ", policy="<b>oh</b>!! a")
    assert "no &amp; yes<mark>!</mark> " in html
    assert "&lt;b&gt;oh&lt;/b&gt;<mark>!!</mark> a" in html


def test_words_that_differ_are_marked_in_base_and_arm(light_view: ReportView) -> None:
    html = _with_texts(
        light_view,
        None,
        base="I like this old scarf of yours",
        policy="I like this <new> scarf of yours",
        prompted="I love this old scarf of yours",
    )
    assert 'I like this <span class="diff">old</span> scarf of yours' in html
    assert 'I like this <span class="diff">&lt;new&gt;</span> scarf of yours' in html
    assert 'I <span class="diff">love</span> this old scarf of yours' in html


def test_texts_without_a_word_in_common_are_not_marked_and_say_so(light_view: ReportView) -> None:
    html = _with_texts(light_view, None, base="one two three", policy="four five six")
    assert "hardly a word in common" in html
    same = _with_texts(light_view, None, base="one two", policy="one two")
    assert "word for word the base&#39;s" in same


def test_samples_can_be_filtered_by_what_they_carry(page: _Page, view: ReportView) -> None:
    samples = [attrs for tag, attrs in page.elements if tag == "details" and "data-kind" in attrs]
    assert len(samples) == sum(len(trait.samples) for trait in view.traits)
    found = [
        tuple(attrs[f"data-{key}"] for key in ("trait", "kind", "pick", "rise"))
        for attrs in samples
    ]
    assert found[:2] == [
        ("enthusiastic", "everyday", "win", "0.401"),
        ("enthusiastic", "trait", "loss", "-0.112"),
    ]
    form = next(attrs for tag, attrs in page.elements if tag == "form")
    # Without a script nothing filters, so nothing is offered.
    assert "hidden" in form
    controls = {attrs["name"] for tag, attrs in page.elements if tag in {"select", "input"}}
    assert controls == {"trait", "kind", "pick", "least", "arm"}


def test_first_sample_of_each_pick_is_open(light_view: ReportView) -> None:
    page = _Page(render(light_view))
    samples = [attrs for _, attrs in page.elements if "data-pick" in attrs and "data-kind" in attrs]
    found = [(attrs["data-pick"], "open" in attrs) for attrs in samples]
    assert found[:4] == [("win", True), ("loss", True), ("random", True), ("random", False)]


def test_trait_without_a_loss_says_so(page: _Page) -> None:
    assert "None: the contrast fell on no prompt." in page.text


def test_controls_that_are_missing_are_named_with_how_to_make_them(page: _Page) -> None:
    assert "Controls that are missing: neutral, placebo" in page.text
    assert "run experiment=neutral, then evaluation.compare=[runs/neutral]" in page.text


def test_probes_read_in_the_direction_that_they_ask_for(page: _Page) -> None:
    assert "Policy against base, 6 rows: better in 4, not established in 2." in page.text
    assert "Worse: plain, refused 0.090 against 0.020, +0.070 [0.040, 0.100]." in page.text
    assert "Policy against base, 1 row: not established in 1." in page.text
    refused = _row(page, "plain: refused (share)")
    assert refused[-1] == "\u25bc worse"


def test_flips_stand_beside_their_floor_for_every_arm(page: _Page) -> None:
    table = page.text.partition("Verdicts that change with the wording")[2]
    text = " ".join(table.split())
    for given in (
        "Detector found base 0.190 [0.140, 0.240] 0.187 [0.127, 0.247] +0.003 [-0.028, 0.034]",
        "policy 0.294 [0.244, 0.344] 0.187 [0.127, 0.247] +0.107 [0.076, 0.138]",
    ):
        assert given in text, given


def test_probes_by_trait_are_of_the_policy_and_counted(light_view: ReportView) -> None:
    probe = light_view.probes[0]
    found = light_view.probes[1].rows[0].effects["policy"]
    unknown = replace(found, difference=math.nan, note="not established: nothing to lose")
    rows = (
        replace(probe.rows[0], trait_id="honest", measure="contrast_retention"),
        replace(probe.rows[0], measure="contrast_slope", effects={"policy": unknown}),
    )
    html = render(replace(light_view, probes=(replace(probe, rows=rows),)))
    text = " ".join(_Page(html).text.split())
    assert "Trait by trait, 1 row: better in 1." in text
    assert "Policy against base, 1 row: not measured in 1." in text
    assert "honest, plain: contrast, share left of the effect without a condition" in text
    assert "not established: nothing to lose" in text
    assert "left out of both: policy 3." in text
    by_trait = html.partition("trait by trait</h4>")[2].partition("</table>")[0]
    assert "demo-dpo" not in by_trait


def test_free_choices_are_in_points_with_what_the_reading_is_worth(page: _Page) -> None:
    rose = _row(page, "enthusiastic, \u201centhusiastic\u201d")
    assert rose[1:] == [
        *("-41", "137", "+178 [117, 240]", "0.004", "192 / 64", "\u25b2 higher"),
    ]
    assert _row(page, "brief, \u201cshort spoken\u201d")[-1] == "\u25cb not established"
    told = ["1,021", "14", "6", "0.538 [0.507, 0.569]", "no judge"]
    assert _row(page, "base, told") == told
    free = ["1,033", "2", "0", "not measured", "0.866 [0.845, 0.887]"]
    assert _row(page, "policy, free") == free
    text = " ".join(page.text.partition("What it takes up when it is free")[2].split())
    for given in (
        "0.713 [0.665, 0.761] are read as it; one half is chance",
        "all 12 words in the base's order",
        "policy: 0.427 [0.231, 0.623]",
        "demo-dpo: not measured",
    ):
        assert given in text, given
    figure = page.html.partition('<h2 id="free-choice">')[2].partition("</svg>")[0]
    assert "enthusiastic, policy: +178 [117, 240]" in figure
    assert "demo-dpo" not in figure


@pytest.mark.parametrize(
    ("recognised", "words"),
    [
        (Estimate(value=0.56, ci_low=0.5, ci_high=0.62), "nothing below means anything"),
        (None, "nobody knows what the changes below are worth"),
    ],
)
def test_free_choices_that_cannot_be_read_are_said_to_mean_nothing(
    page: _Page, light_view: ReportView, recognised: Estimate | None, words: str
) -> None:
    assert light_view.revealed_preferences
    found = replace(light_view.revealed_preferences, recognised=recognised)
    assert words in _Page(render(replace(light_view, revealed_preferences=found))).text
    assert words not in page.text


def test_attribution_marks_what_moved_and_what_was_not_measured(page: _Page) -> None:
    trained, paid = re.findall(r'<table class="matrix">(.*?)</table>', page.html, re.DOTALL)
    assert re.findall(r'<td class="([^"]*)"', trained) == [
        "num own up",
        "num down",
        "missing",
        "num own up",
    ]
    assert "Diagonal dominance: 0.81 [0.72, 0.90]" in page.text
    assert re.findall(r'<td class="([^"]*)"', paid) == ["num own up", "num up", "num", "num own"]
    assert "Reward, the base shown the trait minus the base shown none" in page.text
    assert "Diagonal dominance: 0.17 [0.02, 0.32]" in page.text


def test_attribution_says_which_of_its_two_parts_is_missing(light_view: ReportView) -> None:
    trained, paid = light_view.attribution
    without = {
        "Missing: which trait's training changed which measure": (paid,),
        "Missing: what the preference model pays": (trained,),
    }
    for words, given in without.items():
        text = _Page(render(replace(light_view, attribution=given))).text
        assert [other for other in without if other in text] == [words]


@pytest.mark.parametrize(
    ("low", "p_holm", "found"), [(0.1, None, True), (0.1, 0.2, False), (-0.1, None, False)]
)
def test_cell_is_established_by_its_interval_and_corrected_p(
    low: float, p_holm: float | None, found: bool
) -> None:
    cell = Cell(difference=0.3, ci_low=low, ci_high=0.5, p_holm=p_holm, num_prompts=9)
    assert cell.is_established == found


def test_effects_over_seeds_stand_with_their_runs(page: _Page) -> None:
    assert "The mean over 2 runs that differ by seed alone (policy, demo-seed-2)" in page.text
    assert "+0.292 [0.175, 0.409]" in " ".join(page.text.split())


def test_gates_of_the_policy_pass_fail_or_are_not_measured(page: _Page) -> None:
    outcome = page.text.partition("Gates")[2].partition("Also judged")[0].split()
    text = " ".join(outcome)
    assert (
        "\u2713 pass length as a multiple of the base's: 0.954 [0.893, 1.021], at most 1.2" in text
    )
    assert "\u2717 fail distinct bigrams as a share of the base's: 0.826" in text
    assert "\u2013 not measured win rate at equal length: at least 0.6" in text
    assert "Gates that were measured: 2, of which 1 fails." in page.text


def test_gpu_hours_are_shown_where_gpus_were_held(light_view: ReportView) -> None:
    cost = replace(light_view.cost, core_hours=None, gpu_hours=3.25)
    text = _Page(render(replace(light_view, cost=cost))).text
    assert "GPU-hours held" in text
    assert "core-hours held" not in text


def _luminance(colour: str) -> float:
    parts = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1])
def test_colours_of_arms_stand_out_from_the_paper(page: _Page, theme: int) -> None:
    """WCAG 2.1, 1.4.11: at least 3 to 1 for what has to be seen to read a chart."""
    blocks = re.findall(r":root \{(.*?)\n *\}", page.html, re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[theme]))
    arms = [colours[f"arm-{index}"] for index in range(1, 9)]
    assert len(set(arms)) == len(ARM_COLOURS)
    paper = _luminance(colours["paper"])
    for colour in arms:
        low, high = sorted((_luminance(colour), paper))
        assert (high + 0.05) / (low + 0.05) >= 3, colour


@pytest.mark.parametrize(
    "missing",
    [
        "was not evaluated",
        "The constitution has no description.",
        "no trait was evaluated",
        "the evaluation has no gates",
        "no arm was compared with the base",
        "nothing was measured over all responses together",
        "effects by kind of prompt were not measured",
        "no probe was run",
        "Missing: what arms take up when they are free to choose",
        "Missing: which trait's training changed which measure.",
        "Missing: what the preference model pays for each trait",
        "Missing: other seeds.",
        "the defaults are not known here",
        "no verdict lines were given",
        "How the intervals were made was not recorded",
        "contrast was not measured for any trait",
        "detector rate was not measured for any trait",
        "Missing: reward was not measured for any trait",
        "no preference model",
        "no step of this phase",
        "the template check was not run",
        "the ranker check was not run",
        "prompt counts were not recorded",
        "rejects were not recorded",
        "the labels of the pairs were not recorded",
        "the stages were not recorded",
        "the command was not recorded",
    ],
)
def test_missing_parts_are_named(page: _Page, bare_page: _Page, missing: str) -> None:
    assert missing in bare_page.text
    assert missing not in page.text


def test_parts_of_a_trait_that_are_missing_are_named(
    view: ReportView, light_view: ReportView
) -> None:
    honest: TraitView = view.traits[2]
    text = _Page(render(replace(light_view, traits=(honest,), samples_note=None))).text
    for missing in (
        "This trait has no detector, so nothing is marked.",
        "no detector",
        "no responses were kept for this trait",
        "How the prompts were picked was not recorded",
    ):
        assert missing in text, missing


def _bare_model(view: ReportView) -> PreferenceModelView:
    assert view.preference_model
    return replace(
        view.preference_model,
        gates=(),
        accuracy_overall=None,
        accuracy_by_trait={},
        accuracy_by_strength=(),
        accuracy_same_variant=None,
        shortcuts=(),
        length_correlation=None,
        length_slope=None,
        before_temperature=None,
        after_temperature=None,
        temperature=None,
        baseline_nll={},
        curve=(),
        held_out_losses=(),
        best_step=None,
        members=(),
        shared_scenarios=(),
    )


def test_parts_of_the_preference_model_that_are_missing_are_named(
    page: _Page, view: ReportView, light_view: ReportView
) -> None:
    bare = _Page(render(replace(light_view, preference_model=_bare_model(view))))
    assert not bare.mismatched
    assert _row(bare, "by label strength") == ["not measured"]
    assert _row(bare, "both written alike") == ["not measured"]
    for missing in (
        "the gates were not recorded",
        "held-out accuracy was not measured",
        "shortcuts were not measured",
        "Correlation of reward and length within prompts: not measured",
        "The reward per token of length was not measured",
        "calibration was not measured",
        "no training curve was recorded",
        "the models that were trained were not recorded",
    ):
        assert missing in bare.text, missing
        assert missing not in page.text, missing


def test_numbers_of_the_preference_model_that_are_missing_are_named(
    view: ReportView, light_view: ReportView
) -> None:
    assert view.preference_model
    assert view.preference_model.accuracy_overall
    plain = replace(
        view.preference_model.accuracy_overall,
        ci_low=math.nan,
        ci_high=math.nan,
        length_only=None,
        above_length=None,
        above_provenance=None,
    )
    model = replace(
        view.preference_model,
        accuracy_overall=plain,
        accuracy_by_trait={"honest": None},
        after_temperature=None,
        temperature=None,
        baseline_nll={},
        curve=(),
        members=view.preference_model.members[:1],
    )
    page = _Page(render(replace(light_view, preference_model=model)))
    accuracy = ["0.687 no interval", "not measured", "0.604", "not measured", "1,152 192"]
    assert _row(page, "all pairs") == accuracy
    assert _row(page, "honest") == ["not measured"]
    assert _row(page, "label from 0.50 to 0.60") == ["not measured"]
    assert _row(page, "the model after temperature") == ["not measured"]
    assert _row(page, "length or provenance alone") == ["not measured"]
    for missing in (
        "Temperature: not fitted",
        "no training loss was recorded",
        "Neither a gold model nor further members were trained.",
    ):
        assert missing in page.text, missing


def test_gates_show_number_interval_threshold_and_verdict(page: _Page) -> None:
    met = ["0.021", "[0.009, 0.038]", "at most 0.080", "\u2713 met"]
    assert _row(page, "calibration error (ECE) after the temperature") == met
    not_met = ["0.531", "[0.481, 0.581]", "at least 0.550", "\u2717 not met"]
    assert _row(page, "held-out accuracy of the worst trait (honest)") == not_met
    unmeasured = ["not measured", "at least 0.020", "\u2013 unmeasured"]
    assert _row(page, "accuracy above length") == unmeasured


def test_worst_trait_comes_first(view: ReportView) -> None:
    assert view.preference_model
    by_trait = {**view.preference_model.accuracy_by_trait, "unseen": None}
    general = by_trait["brief"]
    assert general
    by_trait[None] = replace(general, accuracy=0.6)
    rows = sections.accuracies(replace(view.preference_model, accuracy_by_trait=by_trait))
    assert [label for label, _ in rows] == [
        "all pairs",
        "honest",
        "no trait at stake",
        "brief",
        "uncertain",
        "enthusiastic",
        "unseen",
    ]


@pytest.mark.parametrize(
    ("edit", "cells"),
    [
        ("padding", ["+0.183", "[0.121, 0.245]", "64 %", "187", "\u25b2 rewarded"]),
        ("markdown", ["-0.623", "[-0.755, -0.491]", "14 %", "187", "\u25bc penalised"]),
        ("emoji", ["+0.071", "[-0.006, 0.148]", "56 %", "187", "\u25cb not established"]),
    ],
)
def test_edit_that_earns_reward_is_marked(page: _Page, edit: str, cells: list[str]) -> None:
    assert _row(page, edit) == cells


def test_models_are_compared_with_the_one_that_trains_the_policy(page: _Page) -> None:
    assert _row(page, "model") == ["768", "30 of 48", "0.687 [0.661, 0.713]", "the model itself"]
    gold = ["192", "9 of 12", "0.648 [0.620, 0.676]", "0.776 [0.757, 0.795]"]
    assert _row(page, "gold") == gold


def test_calibration_stands_beside_the_baselines(page: _Page) -> None:
    after = ["0.021", "[0.009, 0.038]", "0.204", "0.604"]
    assert _row(page, "the model after temperature") == after
    assert _row(page, "length alone") == ["not measured", "0.684"]


def test_placebo_is_called_one(page: _Page, view: ReportView, light_view: ReportView) -> None:
    assert view.preference_model
    model = replace(view.preference_model, labels="shuffled")
    line = "This model is a placebo"
    assert line in render(replace(light_view, preference_model=model))
    assert line not in page.html


def test_texts_of_the_preference_model_are_escaped(
    page: _Page, view: ReportView, light_view: ReportView
) -> None:
    model = view.preference_model
    assert model
    hostile = replace(
        model,
        objective=HOSTILE,
        gates=(replace(model.gates[0], measure=HOSTILE),),
        accuracy_by_trait={HOSTILE: model.accuracy_overall},
        shortcuts=(replace(model.shortcuts[0], edit=HOSTILE),),
        baseline_nll={HOSTILE: 0.7},
        members=(replace(model.members[0], name=HOSTILE),),
    )
    found = _Page(render(replace(light_view, preference_model=hostile)))
    # Two charts repeat the text, cut: in the tables it stands whole.
    assert found.text.count(HOSTILE) >= 6
    assert {tag for tag, _ in found.elements} <= {tag for tag, _ in page.elements}
    assert not found.mismatched


def test_metrics_that_a_phase_has_not_are_named(page: _Page) -> None:
    assert (
        "A step took 21.7 s on average: waiting for rollouts 12.0 s (55 %), training 6.0 s (28 %), "
        "sending weights to the engines 3.0 s (14 %), checking that they arrived 0.7 s (3 %). "
        "The oldest weights that wrote a token were 1 step behind; 2 groups took the place of such "
        "as teach nothing."
    ) in " ".join(page.text.split())
    assert "Not measured in this phase: Reward; KL to reference in nats per token;" in page.text


def test_no_rejects_differs_from_rejects_not_recorded(light_view: ReportView) -> None:
    text = _Page(render(replace(light_view, data=replace(light_view.data, rejects=())))).text
    assert "No stage rejected a row." in text
    assert "rejects were not recorded" not in text


def test_long_runs_are_thinned_to_a_table_that_says_so(
    view: ReportView, light_view: ReportView
) -> None:
    step = view.policy[-1]
    steps = tuple(replace(step, step=number, reward=float(number)) for number in range(1, 252))
    text = _Page(render(replace(light_view, policy=steps))).text
    assert "85 of 251 steps, evenly spaced, with the last one." in text
    assert "251.0000" in text


def test_perfect_accuracy_is_called_a_warning(
    page: _Page, view: ReportView, light_view: ReportView
) -> None:
    assert view.preference_model
    assert view.preference_model.accuracy_overall
    perfect = replace(view.preference_model.accuracy_overall, accuracy=1.0)
    model = replace(view.preference_model, accuracy_overall=perfect)
    assert "is a warning" in render(replace(light_view, preference_model=model))
    assert "is a warning" not in page.html


def test_contrast_is_qualified_where_it_made_the_labels(light_view: ReportView) -> None:
    assert "contrast is close to what was trained for" in render(light_view)
    judged = tuple(
        replace(check, is_chosen=not check.is_chosen) for check in light_view.ranker_checks or ()
    )
    html = render(replace(light_view, ranker_checks=judged))
    assert "contrast is close to what was trained for" not in html


def test_run_that_shows_no_character_has_no_checks(light_view: ReportView) -> None:
    html = render(replace(light_view, template_checks=None, ranker_checks=None))
    assert "contrast is close to what was trained for" not in html


def test_scenarios_that_the_gold_model_shares_are_named(view: ReportView) -> None:
    assert view.preference_model is not None
    assert "than the model, of other scenarios;" in render(view)
    shared = replace(view.preference_model, shared_scenarios=("a gift", HOSTILE))
    found = render(replace(view, preference_model=shared))
    assert "of which those of a gift, " in found
    assert HOSTILE not in found


def test_a_drawing_outside_a_figure_is_the_mark_of_an_arm_and_as_small(page: _Page) -> None:
    rest = re.sub(r"<figure.*?</figure>", "", page.html, flags=re.DOTALL)
    widths = [float(width) for width in re.findall(r'<svg[^>]*viewBox="0 0 ([\d.]+) ', rest)]
    assert widths
    assert max(widths) < 21
    assert ":not(figure) > svg { width: 20px; height: 13px;" in page.html

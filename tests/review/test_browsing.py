"""Browsing: a run that is finished or under way, texts of any kind, and large tables quickly."""

import html
import json
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from review_browser import PORT, Browser
from reviewed_run import (
    HOSTILE,
    commit,
    make_run,
    prompt_row,
    ranking_row,
    response_rows,
    sample_row,
)

from charactertrain import artifacts
from charactertrain.artifacts import Identity
from charactertrain.records import EvaluationSample, Prompt, Ranking, Response, from_table, to_table
from charactertrain.review.app import make_app
from charactertrain.review.rendering import MAX_TEXT_CHARACTERS
from charactertrain.review.security import Access
from charactertrain.review.store import ReviewStore
from charactertrain.storage import Directory, open_directory

PAGES = (
    "/",
    "/judge",
    "/naming",
    "/agreement",
    "/list/prompts",
    "/list/responses",
    "/list/rankings",
    "/list/pairs",
    "/samples",
    "/traits",
    "/reviews",
    "/reviewers",
)


def open_browser(run: Directory) -> Browser:
    access = Access()
    store = ReviewStore(run.local_path)
    return Browser(make_app(run, store, access, port=PORT), access.invite("Ada"))


def unfinish(run: Directory, stage: str) -> None:
    """Make a stage one that is being worked on."""
    run.delete(f"{stage}/manifest.json")
    artifacts.begin(run.child(stage), Identity(stage, {}, {}))


def test_tables_are_narrowed_and_searched(browser: Browser) -> None:
    assert browser.get("/list/responses").count("data-item") == 36
    text = browser.get("/list/responses?trait_id=brief&variant=mild")
    assert text.count("data-item") == 4
    assert "4 of 36" in text
    assert browser.get("/list/responses?q=LOVELY").count("data-item") == 12
    assert browser.get("/list/responses?q=LOVELY&trait_id=brief").count("data-item") == 4
    assert "No row fits" in browser.get("/list/responses?q=%25")
    assert browser.get("/list/prompts?q=scarf&split=validation").count("data-item") == 0
    assert browser.get("/list/pairs?q=SCARF").count("data-item") == 9
    assert browser.get("/list/pairs?q=lovely&trait_id=brief").count("data-item") == 8
    assert browser.get("/list/pairs?split=validation").count("data-item") == 9
    assert browser.get("/list/rankings?trait_id=honest").count("data-item") == 4


@pytest.mark.parametrize("query", ["", "q=LOVELY", "q=LOVELY&trait_id=brief", "trait_id=honest"])
def test_pages_follow_one_another_to_the_last_row(
    browser: Browser, monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    whole = browser.get(f"/list/responses?{query}").split("<article")[1:]
    monkeypatch.setattr("charactertrain.review.browsing.PAGE_ROWS", 5)
    url, found = f"/list/responses?{query}", []
    while url:
        text = browser.get(url)
        found += text.split("<article")[1:]
        following = re.search(r'href="([^"]*)" data-key="\]"', text)
        url = html.unescape(following[1]) if following else ""
    prompts = [re.findall(r"\?id=(p\d+)", each) for each in found]
    assert prompts == [re.findall(r"\?id=(p\d+)", each) for each in whole]
    assert len(found) > 3


def test_a_ranking_is_shown_with_its_reasons(browser: Browser) -> None:
    text = browser.get("/prompt?id=p1")
    places = [text.index(f"utility {value}") for value in ("1.20", "0.10", "-1.30")]
    assert places == sorted(places)
    assert "Ranked by contrast" in text
    assert "judge prefers the same in 0.33" in text
    for value in ("0.65", "0.90", "0.60"):
        assert f"{value} <meter" in text


def test_replies_of_the_arms_stand_side_by_side_the_base_first(browser: Browser) -> None:
    text = browser.get("/samples")
    assert text.index("<h3>base</h3>") < text.index("<h3>policy</h3>")
    assert text.count("data-item") == 3
    assert browser.get("/samples?q=limps").count("data-item") == 3
    assert browser.get("/samples?trait_id=brief").count("data-item") == 0


@pytest.mark.parametrize("page", PAGES)
def test_a_run_that_has_only_begun_has_every_page(tmp_path: Path, page: str) -> None:
    run = open_directory(str(tmp_path))
    run.write_bytes("config.yaml", b"")
    browser = open_browser(run)
    assert browser.get(page)
    assert browser.client.get("/prompt?id=p1").status_code == 404


@pytest.mark.parametrize("page", PAGES)
def test_a_running_stage_shows_its_finished_chunks(run: Directory, page: str) -> None:
    for stage in ("rankings", "pairs", "evaluation"):
        unfinish(run, stage)
    assert open_browser(run).get(page)


def test_progress_is_that_of_finished_chunks(run: Directory) -> None:
    shutil.rmtree(run.path("pairs"))
    unfinish(run, "rankings")
    run.write_bytes("rankings/rankings/rows_per_chunk.txt", b"4")
    run.delete("rankings/rankings/part-000001.parquet")
    browser = open_browser(run)
    text = browser.get("/?part=1")
    assert "24 of 36 source rows" in text
    assert "8 rankings" in text
    before = browser.get("/list/rankings").count("data-item")
    group = response_rows(prompt_row(4))
    table = to_table([ranking_row(group, 4)], Ranking)
    run.write_table("rankings/rankings/part-000001.parquet", table)
    assert browser.get("/list/rankings").count("data-item") == before + 1
    assert "36 of 36 source rows" in browser.get("/?part=1")


def test_a_stage_that_was_made_anew_is_read_anew(run: Directory, browser: Browser) -> None:
    """With files of the same names and row counts, and the texts of other prompts."""
    first = prompt_row(0)
    before = said_to(browser, first)
    entries = artifacts.require(run.child("responses"), "responses").table("responses")
    name = f"responses/{entries[0].name}"
    rows = from_table(run.read_table(name), Response)
    changed = [replace(row, text=f"Anew: {row.text}") for row in rows]
    run.delete("responses/manifest.json")
    run.delete(name)
    run.write_table(name, to_table(changed, Response))
    artifacts.begin(run.child("responses"), Identity("responses", {}, {}))
    after = said_to(browser, first)
    assert "Anew: " not in before
    assert "Anew: " in after


def said_to(browser: Browser, prompt: Prompt) -> str:
    return browser.get(f"/prompt?id={prompt.prompt_id}")


def test_a_search_of_samples_that_stopped_at_its_limit_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    unfinish(run, "evaluation")
    rows = [sample_row(index, arm) for index in range(300) for arm in ("base", "policy")]
    table = to_table(rows, EvaluationSample)
    run.write_table("evaluation/samples/part-000099.parquet", table)
    browser = open_browser(run)
    assert "and perhaps more" in browser.get("/samples?q=poem")
    assert "and perhaps more" not in browser.get("/samples")


def test_responses_progress_by_prompts(run: Directory) -> None:
    unfinish(run, "responses")
    run.write_bytes("responses/responses/rows_per_chunk.txt", b"4")
    run.delete("responses/responses/part-000002.parquet")
    assert "8 of 12 source rows" in open_browser(run).get("/?part=1")


def test_training_is_followed_though_its_last_line_is_half_written(run: Directory) -> None:
    lines = [{"stage": "policy", "loss": 0.5 - 0.125 * step} for step in range(3)]
    lines += [{"stage": "policy", "warm start": f"{step}/2", "loss": 2 + step} for step in (0, 1)]
    lines += [{"stage": "preference_model", "member": "gold", "loss": 0.7}] * 2
    text = "".join(json.dumps(line) + "\n" for line in lines)
    run.write_bytes("metrics.jsonl", text.encode() + b'{"stage": "pol')
    page = open_browser(run).get("/?part=1")
    assert 'policy: loss <b class="num">0.250</b>' in page
    assert 'policy, warm start: loss <b class="num">3.000</b>' in page
    assert 'preference model, gold: loss <b class="num">0.700</b>' in page
    assert page.count("<polyline points=") == 3


def test_a_damaged_artifact_is_said_on_a_page(run: Directory, browser: Browser) -> None:
    run.write_bytes("prompts/prompts/part-000000.parquet", b"PAR1 broken")
    answer = browser.client.get("/list/prompts")
    assert answer.status_code == 500
    assert "part-000000.parquet" in answer.text


@pytest.fixture(name="hostile")
def hostile_run(tmp_path: Path) -> Directory:
    """A run whose texts try to do something, one of them megabytes long."""
    run = make_run(tmp_path / "hostile", num_prompts=3)
    prompt = replace(prompt_row(0), text=HOSTILE)
    responses = response_rows(prompt, (HOSTILE, "x" * 3_000_000, "</div></form>" + HOSTILE))
    for stage in ("responses", "rankings"):
        shutil.rmtree(run.path(stage))
    file = "part-000000.parquet"
    commit(run, "responses", [(f"responses/{file}", to_table(responses, Response))])
    ranked = to_table([ranking_row(responses, 0)], Ranking)
    commit(run, "rankings", [(f"rankings/{file}", ranked)])
    return run


@pytest.mark.parametrize("page", ["/judge", "/naming", "/list/responses", "/prompt?id=p0"])
def test_hostile_texts_are_shown_as_texts(hostile: Directory, page: str) -> None:
    text = open_browser(hostile).get(page)
    assert html.escape("<script>document", quote=False) in text
    assert "<script>document" not in text
    assert "<img" not in text
    assert "\u202e" not in text
    assert "\\u202eright to left\\u0000\\u001b[31m{{ 7 * 7 }}" in text
    assert len(text) < 20 * MAX_TEXT_CHARACTERS


def test_what_is_not_shown_of_a_long_text_is_counted(hostile: Directory) -> None:
    text = open_browser(hostile).get("/prompt?id=p0")
    assert "[2,980,000 more characters not shown]" in text


def test_hostile_queries_are_shown_as_texts(browser: Browser) -> None:
    text = browser.get("/list/responses?q=%3Cscript%3E&trait_id=%22%3E%3Cb%3E")
    assert "<script>" not in text
    assert "<b>" not in text
    for query in ("start=-5", "start=999999", "start=99999999999999999999", "trait_id=x&split=y"):
        assert browser.client.get(f"/list/responses?{query}").status_code in (200, 422)


def big_table(first: int, count: int) -> pa.Table:
    """Responses as a stage writes them: a text of some 400 characters, and 64 tokens."""
    numbers = range(first, first + count)
    table = to_table([response_rows(prompt_row(0))[0]], Response)
    columns: dict[str, Any] = {
        "response_id": [f"r{n}" for n in numbers],
        "prompt_id": [f"p{n // 6}" for n in numbers],
        "text": [f"Answer {n}: " + f"word{n % 977} " * 45 for n in numbers],
        "token_ids": [[n % 50_000] * 64 for n in numbers],
        "logprobs": [[-0.5] * 64] * count,
    }
    arrays = [
        pa.array(columns[field.name], field.type)
        if field.name in columns
        else pa.array(table.column(field.name).to_pylist() * count, field.type)
        for field in table.schema
    ]
    return pa.Table.from_arrays(arrays, schema=table.schema)


def big_rankings(count: int) -> pa.Table:
    """Rankings of six responses each."""
    one = ranking_row(response_rows(prompt_row(0)), 1)
    rows = [
        replace(
            one,
            prompt_id=f"p{n}",
            response_ids=tuple(f"r{6 * n + k}" for k in range(6)),
            utilities=(0.0,) * 6,
            pair_probabilities=tuple(0.5 + ((7 * n + k) % 50) / 100 for k in range(15)),
            num_tokens=(64,) * 6,
        )
        for n in range(count)
    ]
    return to_table(rows, Ranking)


@pytest.mark.slow
@pytest.mark.parametrize("per_file", [100, 100_000])
def test_a_page_of_100_000_responses_opens_in_two_seconds(tmp_path: Path, per_file: int) -> None:
    run = make_run(tmp_path, num_prompts=3)
    for stage in ("responses", "rankings"):
        shutil.rmtree(run.path(stage))
    starts = range(0, 100_000, per_file)
    tables = [(f"responses/part-{n:06d}.parquet", big_table(n, per_file)) for n in starts]
    commit(run, "responses", tables)
    commit(run, "rankings", [("rankings/part-000000.parquet", big_rankings(16_000))])
    browser = open_browser(run)
    took = {}
    for url in (
        "/list/responses",
        "/list/responses?start=77777",
        "/list/responses?trait_id=honest&start=500",
        "/list/responses?q=word976",
        "/prompt?id=p9000",
        "/list/rankings",
        "/judge",
        "/agreement",
        "/naming",
        "/",
    ):
        started = time.perf_counter()
        text = browser.get(url)
        took[url] = time.perf_counter() - started
        assert "Answer" in text or url in ("/", "/list/rankings", "/agreement")
    assert "Answer 77777:" in browser.get("/list/responses?start=77777")
    assert max(took.values()) < 2, took


def test_only_the_files_of_a_page_are_read(run: Directory, browser: Browser) -> None:
    # The second of three files is not one: a page of the first does not need it.
    run.write_bytes("responses/responses/part-000001.parquet", b"")
    entries = artifacts.read_manifest(run.child("responses"))
    assert entries is not None
    small = browser.client.get("/list/responses?start=24")
    assert small.status_code == 200
    assert browser.client.get("/list/responses?start=10").status_code == 500


def test_row_groups_are_read_as_far_as_asked(tmp_path: Path) -> None:
    directory = open_directory(str(tmp_path))
    table = pa.table({"n": list(range(100)), "other": ["x"] * 100})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=7)
    for start, stop in ((0, 1), (6, 8), (13, 14), (0, 100), (98, 100)):
        found = directory.read_slice("t.parquet", start, stop, ["n"])
        assert found.column_names == ["n"]
        assert found.column("n").to_pylist() == list(range(start, stop))

"""The settings for tools and large models: what they refuse, what they open, and the account that is kept."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from local_llm import local_llm
from local_web import LocalWeb, local_web, says
from small_notebooks import OURS, write

from mmsr.files import FileDamaged
from mmsr.live.engines import TEXT_ENGINES, moved
from mmsr.live.limits import BudgetSpent, KeyRefused
from mmsr.live.outside import Outside, connect, record_usage
from mmsr.presets import read_settings
from mmsr.results import read_metrics
from mmsr.runs import RunFailed, UsageError
from mmsr.runs.runner import run
from mmsr.tools.base import FatalToolError
from mmsr.world.snapshot import load_world

ROW = {"title": "Kenya", "link": "https://example.org/ke", "snippet": "Nairobi"}
ANSWER = {"organic": [ROW], "results": [{"url": "https://example.org/ke", "title": "Kenya", "content": "Nairobi"}]}
HERE = {"search": "serper", "read_pages": False}
WORLD = load_world()
RIGHT = ("What is the capital?", ["Nairobi", "City of Nairobi"], "Nairobi")


def outside(**values: Any) -> Outside:
    return read_settings(Outside, values, "outside")


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SERPER_API_KEY", "SERPAPI_API_KEY", "GOOGLE_API_KEY", "BRAVE_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def web() -> LocalWeb:
    with local_web() as web:
        web.play(says(200, ANSWER))
        yield web


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"serch": "serper"}, "outside has no key 'serch': it has search, search_url, picture_search"),
        ({"search": "gogle"}, "search must be 'local', 'milvus', 'serper', 'serpapi'"),
        (
            {"picture_search": "serper"},
            "picture_search must be 'local', 'milvus', 'serpapi_lens' or 'google_vision', not 'serper'.",
        ),
        ({"grounder": "dinoo"}, "grounder must be 'base' or 'dino', not 'dinoo'."),
        ({"mode": "replays", "record": "x"}, "mode must be 'live', 'record' or 'replay', not 'replays'."),
        ({"search": "serper", "search_url": "127.0.0.1:8765"}, "search_url must be an address such as http://"),
        ({"judge": "m", "llm_url": "http://me:secret@host/v1"}, "llm_url must be an address"),
        ({"search": "serper", "search_url": "http://host/?api_key=secret"}, "search_url must be an address"),
        ({"search": "serper", "search_url": "http://[x"}, "search_url must be an address"),
        ({"judge": "m", "llm_url": "http://host:99999/v1"}, "llm_url must be an address"),
        ({"search_url": "http://127.0.0.1:8765"}, "search_url is given but search is local"),
        ({"picture_url": "http://127.0.0.1:8765"}, "picture_url is given but picture_search is local"),
        ({"mode": "record"}, "record names no file, but mode is record"),
        ({"record": "calls.sqlite"}, "record names a file, but mode is live"),
        ({"budget_calls": "many"}, "outside: budget_calls must be a whole number, not 'many'."),
        ({"budget_money": "nan"}, "budget_money must be a finite number, not 'nan'."),
        ({"teacher_workers": 0}, "teacher_workers must be greater than or equal to 1, not 0."),
        ({"budget_calls": -1}, "budget_calls must be greater than or equal to 0, not -1."),
        ({"budget_money": 1.0, "judge": "m"}, "give llm_price_in and llm_price_out"),
        ({"search": "serper+gogle"}, "or several of them joined by +, not 'serper+gogle'."),
        ({"search": "serper+serper"}, "search=serper+serper: each engine once, at its own address"),
        ({"search": "local+milvus"}, "milvus only by itself."),
        ({"search": "serper+searxng", "search_url": "http://127.0.0.1:8765"}, "each engine once, at its own address"),
        ({"record_days": -1}, "record_days must be greater than or equal to 0, not -1."),
        ({"distrusted": "a.example https://b.example"}, "distrusted must be domains such as 'example.org example.net'"),
        ({"budget_money": 1.0, "judge": "m", "teacher": "t", "teacher_llm": {"price_in": 1}}, "give llm_price_in"),
        ({"judge_llm": {"price_in": -1}}, "judge_llm.price_in must be greater than or equal to 0, not -1."),
        ({"judge_llm": {"max_tokens": "all"}}, "judge_llm.max_tokens must be a whole number, not 'all'."),
    ],
)
def test_values_that_cannot_be_met_are_refused_in_one_sentence(values: dict, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        outside(**values)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


def test_a_command_line_gives_text() -> None:
    given = {"search": "wikimedia", "budget_calls": "20", "budget_money": "1.5", "read_pages": "false"}
    assert outside(**given) == Outside(search="wikimedia", budget_calls=20, budget_money=1.5, read_pages=False)


def test_fields_say_what_is_a_path_and_what_may_change_when_a_run_goes_on() -> None:
    marks = {name: field.json_schema_extra or {} for name, field in Outside.model_fields.items()}
    assert [name for name in marks if marks[name].get("path")] == ["search_url", "picture_url", "world", "record"]
    loose = ["teacher_workers", "rivals", "llm_url", "llm_max_tokens", "teacher_llm", "judge_llm", "summary_llm"]
    loose += ["rivals_llm", "record_days", "budget_calls", "budget_money"]
    assert [name for name in marks if marks[name].get("loose")] == loose


@pytest.mark.parametrize(
    ("url", "distrusted"),
    [
        ("https://example.org", True),
        ("http://WWW.Example.ORG.:8080/a", True),
        ("https://me@mirror.example.net/", True),
        ("https://notexample.org/", False),
        ("https://example.org.other.example/", False),
        ("https://other.example/example.org", False),
        ("https://example.org@other.example/", False),
        ("http://[x", False),
        ("", False),  # a page of the world
    ],
)
def test_a_trust_list_refuses_domains_and_those_below_them(url: str, distrusted: bool) -> None:
    assert outside(distrusted="Example.org example.net").distrusts(url) is distrusted
    assert not outside().distrusts(url)


def test_a_missing_key_is_told_at_once_and_by_name() -> None:
    for values, key in (
        ({"search": "serper"}, "SERPER_API_KEY"),
        ({"search": "wikimedia+brave"}, "BRAVE_API_KEY"),
        ({"picture_search": "google_vision"}, "GOOGLE_API_KEY"),
        ({"judge": "gpt-4o"}, "OPENAI_API_KEY"),
    ):
        with pytest.raises(KeyRefused, match=f"set the environment variable {key}"):
            connect(outside(**values))
    connect(outside(search="wikimedia"))  # needs none


def test_a_replay_needs_its_record_and_no_key(tmp_path: Path) -> None:
    with pytest.raises(FatalToolError, match="no record at"):
        connect(outside(search="serper", mode="replay", record=str(tmp_path / "none")))
    connect(outside(search="wikimedia", mode="record", record=str(tmp_path / "calls")))
    connect(outside(search="serper", judge="gpt-4o", mode="replay", record=str(tmp_path / "calls")))


def test_a_server_of_ones_own_gets_a_key_only_where_one_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    public = TEXT_ENGINES["serper"].service
    own = moved(TEXT_ENGINES["serper"], "http://127.0.0.1:1").service
    assert (own.key_env, own.price, own.base_url) == ("", 0.0, "http://127.0.0.1:1") and own.rate > public.rate
    assert outside(judge="m", llm_url="http://127.0.0.1:1/v1").chat_model("judge").key_env == ""
    monkeypatch.setenv("SERPER_API_KEY", "one-that-is-set")
    paid = moved(TEXT_ENGINES["serper"], "https://proxy.example.org").service
    assert (paid.key_env, paid.price, paid.rate) == ("SERPER_API_KEY", public.price, public.rate)
    assert moved(TEXT_ENGINES["serper"], "") == TEXT_ENGINES["serper"]


# --- the account ------------------------------------------------------------------------------------------------------


def test_the_notebooks_of_a_run_share_its_budget(web: LocalWeb, tmp_path: Path) -> None:
    here = outside(**HERE, search_url=web.url, budget_calls=3)
    connect(here, tmp_path).text_search(WORLD).search("a", 3)
    second = connect(here, tmp_path).text_search(WORLD)
    second.search("b", 3)
    second.search("c", 3)
    with pytest.raises(BudgetSpent, match="budget of 3 outside calls is spent: raise it"):
        second.search("d", 3)
    assert len(web.seen) == 3
    assert json.loads((tmp_path / "outside" / "spent.json").read_text())["serper"]["calls"] == 3
    connect(here, tmp_path / "another").text_search(WORLD).search("d", 3)  # another run has its own
    connect(outside(**HERE, search_url=web.url, budget_calls=4), tmp_path).text_search(WORLD).search("d", 3)


def test_money_is_counted_over_engines_and_models(
    web: LocalWeb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERPER_API_KEY", "one-that-is-set")
    with local_llm() as llm:
        prices = {"llm_price_in": 100.0, "llm_price_out": 100.0, "budget_money": 0.02}
        connection = connect(outside(**HERE, search_url=web.url, judge="m", llm_url=llm, **prices), tmp_path)
        connection.text_search(WORLD).search("a", 3)  # $0.001
        assert connection.judge.verdict(*RIGHT).correct  # some 300 tokens
        with pytest.raises(BudgetSpent, match=re.escape("The budget of $0.02 is spent")):
            connection.text_search(WORLD).search("b", 3)


def test_each_role_has_tokens_prices_and_fields_of_its_own_where_they_are_given() -> None:
    own = {"max_tokens": 50, "price_out": 10.0, "reasoning_effort": "low", "seed": None}
    here = outside(judge="j", teacher="t", llm_price_in=1.0, llm_price_out=2.0, judge_llm=own)
    judge, teacher = here.models()["judge"], here.models()["teacher"]
    assert (judge.model, judge.max_tokens, judge.price_in, judge.price_out) == ("j", 50, 1.0, 10.0)
    assert judge.extra == {"reasoning_effort": "low", "seed": None}
    assert (teacher.max_tokens, teacher.price_out, teacher.extra) == (1024, 2.0, {})
    outside(budget_money=1.0, judge="j", judge_llm={"price_out": 1.0})  # a price of its own is one


def test_a_roles_own_fields_go_with_its_requests(web: LocalWeb, monkeypatch: pytest.MonkeyPatch) -> None:
    reply = {"choices": [{"message": {"content": '{"verdict": "correct"}'}, "finish_reason": "stop"}]}
    web.play(says(200, reply | {"usage": {"prompt_tokens": 1000, "completion_tokens": 100}}))
    own = {"price_in": 1.0, "max_tokens": 77, "top_p": 0.5, "seed": None, "temperature": None}
    connection = connect(outside(judge="j", llm_url=web.url, judge_llm=own))
    assert connection.judge.verdict(*RIGHT).correct
    sent = web.seen[0].json()
    assert (sent["max_tokens"], sent["top_p"]) == (77, 0.5) and not {"seed", "temperature"} & sent.keys()
    assert connection.judge.chat.usage()["cost"] == pytest.approx(0.001)


def test_what_was_asked_is_recorded_alike_live_and_in_replay(web: LocalWeb, tmp_path: Path) -> None:
    found = {}
    with local_llm() as llm:
        for mode in ("record", "replay"):
            values = {"judge": "m", "llm_url": llm, "llm_price_in": 1.0, "record": str(tmp_path / "calls")}
            connection = connect(outside(**HERE, search_url=web.url, mode=mode, **values), tmp_path / mode)
            connection.text_search(WORLD).search("a", 3)
            connection.text_search(WORLD).search("a", 3)
            connection.judge.verdicts([RIGHT, RIGHT])
            told = record_usage(connection, tmp_path / mode, "04_evaluate")
            found[mode] = read_metrics(tmp_path / mode)
            kept = json.loads((tmp_path / mode / "outside" / "04_evaluate.json").read_text())
            assert kept["asked"] == {"judge": 1, "serper": 2} and "asked outside: judge 1, serper 2" in told
            assert kept["judge"]["prompt_sha256"] == connection.judge.settings["prompt"] in told
            assert kept["roles"]["judge"]["model"] == "m" and kept["roles"]["judge"]["dollars"] > 0
            assert bool(kept["spent_by_the_run"]) == (mode == "record")
    assert found["record"] == found["replay"]
    assert found["record"]["outside/04_evaluate/serper/asked"].value == 2
    assert found["record"]["judge/04_evaluate/correct"].value == found["record"]["judge/04_evaluate/exact"].value == 1


def test_what_got_no_answer_is_counted_alike_live_and_in_replay(web: LocalWeb, tmp_path: Path) -> None:
    web.play(says(200, {"organic": [ROW | {"link": f"{web.url}/gone"}, ROW | {"link": "http://[x"}]}), says(404, ""))
    for mode in ("record", "replay"):
        here = outside(search="serper", search_url=web.url, mode=mode, record=str(tmp_path / "calls"))
        connection = connect(here, tmp_path / mode)
        assert [hit.text for hit in connection.text_search(WORLD).search("a", 3)] == ["Nairobi"] * 2
        assert "not answered: page 2" in record_usage(connection, tmp_path / mode, "04_evaluate")
        found = read_metrics(tmp_path / mode)
        assert found["outside/04_evaluate/page/asked"].value == found["outside/04_evaluate/page/failed"].value == 2
        assert found["outside/04_evaluate/serper/failed"].value == 0


@pytest.mark.parametrize("spent", ["", "{", "[]", '{"serper": 3}'])
def test_a_damaged_account_is_told_and_not_taken_for_an_empty_one(web: LocalWeb, tmp_path: Path, spent: str) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "spent.json").write_text(spent)
    with pytest.raises(FileDamaged, match=r"spent\.json is damaged: delete it, and the account"):
        connect(outside(**HERE, search_url=web.url, budget_calls=3), tmp_path).text_search(WORLD).search("a", 3)
    assert web.seen == []


def test_a_run_that_asks_nothing_outside_records_nothing(tmp_path: Path) -> None:
    assert record_usage(connect(outside(), tmp_path), tmp_path, "02_sft") == "Nothing was asked outside."
    assert list(tmp_path.iterdir()) == []


# --- in a run ---------------------------------------------------------------------------------------------------------

SEARCHES = (
    """
from pathlib import Path
from mmsr.live.outside import Outside, connect
from mmsr.presets import read_settings
from mmsr.world.snapshot import load_world
connection = connect(read_settings(Outside, outside, "outside"), Path(run_dir))
""",
    """
# Search
for query in ("a", "b"):
    print(connection.text_search(load_world()).search(query, 3)[0].title)
""",
)
PARAMETERS = OURS + 'outside = {}\nbenchmark = ""\ndata_dir: "Path" = ""\nsample = 0\n'


def test_a_spent_budget_ends_a_notebook_in_its_cell_and_may_be_raised(web: LocalWeb, tmp_path: Path) -> None:
    write(tmp_path, "01_searches", PARAMETERS, *SEARCHES)
    asked = HERE | {"search_url": web.url, "record": str(tmp_path / "calls"), "mode": "record"}
    with pytest.raises(RunFailed) as failure:
        run([], "tiny", "r", 0, asked | {"budget_calls": 1}, tmp_path)
    said = "01_searches, cell [4] (# Search) failed with BudgetSpent: The budget of 1 outside calls is spent"
    assert said in str(failure.value)
    folder = run([], "tiny", "r", 0, asked | {"budget_calls": 2}, tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["notebooks"]["01_searches"]["parameters"]["outside"]["budget_calls"] == 2
    assert manifest["outside"]["spent"]["serper"]["calls"] == len(web.seen) == 2  # the first was not asked again


def test_a_call_that_was_not_recorded_ends_a_notebook_in_its_cell(web: LocalWeb, tmp_path: Path) -> None:
    calls = str(tmp_path / "calls")
    here = outside(**HERE, search_url=web.url, mode="record", record=calls)
    connect(here).text_search(WORLD).search("a", 3)
    write(tmp_path, "01_searches", PARAMETERS, *SEARCHES)
    with pytest.raises(RunFailed) as failure:
        run([], "tiny", "r", 0, HERE | {"record": calls, "mode": "replay"}, tmp_path)
    said = r"01_searches, cell \[4\] \(# Search\) failed with ReplayMiss: The record .*calls has no answer to serper"
    assert re.search(said, str(failure.value))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"search": "gogle"}, "outside: search must be 'local', 'milvus', 'serper'"),
        ({"search": "serper"}, "serper needs a key: set the environment variable SERPER_API_KEY."),
        ({"world": "nowhere"}, "world.json is not there: make the world with `mmsr world index`"),
        ({"benchmark": "okvqb"}, "There is no benchmark 'okvqb'"),
        ({"benchmark": "okvqa"}, "data_dir must be the folder with the files of okvqa"),
        ({"benchmark": "okvqa", "data_dir": "nowhere"}, "data_dir must be the folder"),
    ],
)
def test_what_cannot_be_had_is_told_before_anything_starts(tmp_path: Path, asked: dict, said: str) -> None:
    write(tmp_path, "01_searches", PARAMETERS, *SEARCHES)
    with pytest.raises(UsageError, match=re.escape(said)):
        run([], "tiny", "r", 0, asked, tmp_path)
    assert not (tmp_path / "papermill_runs").exists()


def test_paths_are_given_from_where_the_command_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clone").mkdir()
    monkeypatch.chdir(tmp_path)
    show = """
from pathlib import Path
(Path(run_dir) / "paths").write_text(f"{outside['record']} {outside['search_url']} {data_dir}")
"""
    write(tmp_path / "clone", "01_searches", PARAMETERS, show)
    asked = {"record": "calls.sqlite", "mode": "record", "search": "milvus", "search_url": "world.db"}
    folder = run([], "tiny", "r", 0, asked | {"data_dir": "/data"}, tmp_path / "clone")
    assert (folder / "paths").read_text() == "../../calls.sqlite ../../world.db /data"


def test_a_sample_below_nothing_is_refused(tmp_path: Path) -> None:
    from mmsr.benchmarks.registry import check_benchmark

    with pytest.raises(ValueError, match="sample must be a number of questions"):
        check_benchmark("okvqa", str(tmp_path), -1)

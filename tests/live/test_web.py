"""Every web back end over real HTTP on loopback: each trouble ends in a result or in one clear error, in time."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from local_web import (
    FAST,
    QUICK,
    SECRET,
    LocalWeb,
    Part,
    drips,
    failing,
    fifty_megabytes,
    fifty_megabytes_unannounced,
    gzip_bomb,
    hangs,
    local_web,
    says,
)
from PIL import Image

from mmsr.live.door import Door, Service
from mmsr.live.engines import IMAGE_ENGINES, TEXT_ENGINES, WebSearch, jpeg, plain
from mmsr.live.limits import (
    BadAnswer,
    Budget,
    BudgetSpent,
    KeyRefused,
    Limits,
    QuotaGone,
    RateLimited,
    Refused,
    SetUpFirst,
    TokenBucket,
    Unavailable,
)
from mmsr.live.record import export_jsonl, stats
from mmsr.tools.base import KEYS, FatalToolError, Hit, ToolError
from mmsr.tools.picture import picture_key, read_picture

PICTURE = Image.linear_gradient("L").convert("RGB").resize((60, 40))
ROW = {
    "title": "<b>Kenya</b> &amp; Nairobi",
    "link": "https://a.example/x",
    "url": "https://a.example/x",
    "key": "Kenya",
}
TEXT = {"snippet": "The capital", "description": "The capital", "content": "The capital", "excerpt": "The capital"}


@dataclass(frozen=True)
class Case:
    """A back end: what a success and an empty answer look like, and how it says that the quota is gone."""

    success: tuple[Part, ...]
    empty: tuple[Part, ...]
    quota: Part
    key_at: str = ""


CREDITS = says(400, {"message": "Not enough credits", "statusCode": 400})
PAID = says(402, {"error": "payment required"})
CASES = {
    "serper": Case(
        (says(200, {"organic": [ROW | TEXT] * 3}),), (says(200, {"organic": []}),), CREDITS, "header x-api-key"
    ),
    "serpapi": Case(
        (says(200, {"organic_results": [ROW | TEXT] * 3}),),
        (says(200, {"error": "Google hasn't returned any results for this query."}),),
        says(429, {"error": "Your account has run out of searches."}),
        "query",
    ),
    "brave": Case(
        (says(200, {"web": {"results": [ROW | TEXT] * 3}}),),
        (says(200, {"type": "search"}),),
        says(429, {"error": {"code": "RATE_LIMITED"}}, X_RateLimit_Remaining="0, 0"),
        "header x-subscription-token",
    ),
    "searxng": Case((says(200, {"results": [ROW | TEXT] * 3}),), (says(200, {"results": []}),), PAID),
    "wikimedia": Case((says(200, {"pages": [ROW | TEXT] * 3}),), (says(200, {"pages": []}),), PAID),
    "searchr1": Case(
        (
            says(
                200,
                {"result": [[{"document": {"contents": '"Kenya & Nairobi"\nThe capital', "url": ROW["link"]}}] * 3]},
            ),
        ),
        (says(200, {"result": [[]]}),),
        PAID,
    ),
    "serpapi_lens": Case(
        (says(200, {"image_id": "abc"}), says(200, {"visual_matches": [ROW | {"source": "The capital"}] * 3})),
        (
            says(200, {"image_id": "abc"}),
            says(200, {"error": "Google Lens hasn't returned any results for this query."}),
        ),
        says(429, {"error": "Your account has run out of searches."}),
        "form and query",
    ),
    "google_vision": Case(
        (
            says(
                200,
                {
                    "responses": [
                        {
                            "webDetection": {
                                "bestGuessLabels": [{"label": "The capital"}],
                                "pagesWithMatchingImages": [ROW | {"pageTitle": ROW["title"]}] * 3,
                            }
                        }
                    ]
                },
            ),
        ),
        (says(200, {"responses": [{}]}),),
        says(403, {"error": {"code": 403, "message": "This API requires billing to be enabled"}}),
        "header x-goog-api-key",
    ),
}


# How records have known these searches, for "Kenya capital" or our picture, since their first version.
RECORDED = {
    "serper": "8b4a789afa8b",
    "serpapi": "45f8701e3765",
    "brave": "e144a2425ad9",
    "searxng": "9c00d18f5ce4",
    "wikimedia": "8b0a5c40c6da",
    "searchr1": "3e94389e24a9",
    "serpapi_lens": "36a5f9ddf602",
    "google_vision": "4fde45fc6f86",
}


@pytest.fixture(scope="module")
def web() -> Iterator[LocalWeb]:
    with local_web() as server:
        yield server


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SERPER_API_KEY", "SERPAPI_API_KEY", "BRAVE_API_KEY", "GOOGLE_API_KEY"):
        monkeypatch.setenv(name, SECRET)
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)


def near(engine: Any, url: str, limits: Limits) -> Any:
    return replace(engine, service=replace(engine.service, base_url=url, limits=limits, rate=1000.0))


def search(name: str, web: LocalWeb, door: Door | None = None, query: str = "Kenya capital") -> list[Hit]:
    door = door or Door()
    limits = QUICK if hangs in web.script else FAST
    if name in TEXT_ENGINES:
        return WebSearch(near(TEXT_ENGINES[name], web.url, limits), door).search(query, 2)
    picture = PICTURE.resize((60 + len(query), 40))
    return WebSearch(near(IMAGE_ENGINES[name], web.url, limits), door).search(picture, 2)


@pytest.mark.parametrize("name", CASES)
class TestContract:
    def test_success(self, name: str, web: LocalWeb) -> None:
        web.play(*CASES[name].success)
        hits = search(name, web)
        assert len(hits) == 2
        assert hits[0].title == "Kenya & Nairobi" and hits[0].text == "The capital"
        assert hits[0].url == (f"{web.url}/wiki/Kenya" if name == "wikimedia" else "https://a.example/x")
        assert hits[0].score >= hits[1].score
        assert all(seen.headers["accept-encoding"] == "identity" for seen in web.seen)
        assert "mmsr/" in web.seen[0].headers["user-agent"]

    def test_key_travels_where_the_service_wants_it(self, name: str, web: LocalWeb) -> None:
        web.play(*CASES[name].success)
        search(name, web)
        where = CASES[name].key_at
        for seen in web.seen:
            in_headers = [k for k, v in seen.headers.items() if v == SECRET]
            assert in_headers == ([where.removeprefix("header ")] if where.startswith("header") else [])
        if where == "query":
            assert "api_key=sk-Very" in web.seen[0].path
        if name == "serpapi_lens":
            assert SECRET.encode() in web.seen[0].body and "api_key" not in web.seen[0].path
            assert "api_key=" in web.seen[1].path and "image_id=abc" in web.seen[1].path

    def test_records_made_before_are_found(self, name: str, web: LocalWeb) -> None:
        web.play(*CASES[name].success)
        with KEYS.heard() as keys:
            search(name, web)
        assert [key[:12] for key in keys] == [RECORDED[name]]

    def test_empty(self, name: str, web: LocalWeb) -> None:
        web.play(*CASES[name].empty)
        assert search(name, web) == []

    def test_401(self, name: str, web: LocalWeb) -> None:
        web.play(says(401, {"error": "Invalid API key", "message": f"bad key {SECRET}"}))
        failing(lambda: search(name, web), KeyRefused)
        assert len(web.seen) == 1

    def test_429_with_a_long_wait(self, name: str, web: LocalWeb) -> None:
        web.play(says(429, {"error": "slow down"}, Retry_After="3600"))
        error = failing(lambda: search(name, web), RateLimited)
        assert "3600 s" in str(error) and len(web.seen) == 1

    def test_429_again_and_again(self, name: str, web: LocalWeb) -> None:
        web.play(says(429, {"error": "slow down"}))
        failing(lambda: search(name, web), RateLimited)
        assert len(web.seen) == FAST.tries

    def test_quota_gone(self, name: str, web: LocalWeb) -> None:
        web.play(CASES[name].quota)
        assert isinstance(failing(lambda: search(name, web), QuotaGone), FatalToolError)
        assert len(web.seen) == 1

    def test_500_twice_then_success(self, name: str, web: LocalWeb) -> None:
        web.play(says(500, "oops"), says(503, "<html>oops</html>"), *CASES[name].success)
        assert len(search(name, web)) == 2

    def test_500_for_ever(self, name: str, web: LocalWeb) -> None:
        web.play(says(500, "oops"))
        assert "3 tries" in str(failing(lambda: search(name, web), Unavailable))

    def test_no_answer(self, name: str, web: LocalWeb) -> None:
        web.play(hangs)
        assert "0.2 s" in str(failing(lambda: search(name, web), Unavailable, 1.0))

    def test_broken_json(self, name: str, web: LocalWeb) -> None:
        web.play(says(200, '{"organic": [{"title": '))
        failing(lambda: search(name, web), BadAnswer)
        assert len(web.seen) == 1

    @pytest.mark.parametrize("answer", ["[]", "17", "[" * 100_000, '{"organic": 3, "organic_results": 3, "web": 3}'])
    def test_json_of_another_shape(self, name: str, web: LocalWeb, answer: str) -> None:
        web.play(says(200, answer))
        started = time.monotonic()
        try:
            assert search(name, web) == []
        except ToolError as error:
            assert type(error) is BadAnswer
        assert time.monotonic() - started < 2

    def test_fifty_megabytes(self, name: str, web: LocalWeb) -> None:
        web.play(fifty_megabytes)
        failing(lambda: search(name, web), BadAnswer, 1.5)

    def test_gzip_bomb(self, name: str, web: LocalWeb) -> None:
        web.play(gzip_bomb)
        assert "compressed" in str(failing(lambda: search(name, web), BadAnswer, 1.5))

    def test_secrets_stay_out(self, name: str, web: LocalWeb, tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
        """The server echoes the key it was sent; no record, log line, error or traceback shows it."""
        caplog.set_level(logging.DEBUG)
        echoed = SECRET if CASES[name].key_at else "nothing"
        door = Door("record", tmp_path / "calls.sqlite")
        web.play(says(200, {"echo": echoed, "image_id": "abc", "result": [[]], "responses": []}))
        assert search(name, web, door) == []
        for number, trouble in enumerate([says(500, echoed), says(401, {"error": f"bad key {echoed}"}), hangs]):
            web.play(trouble)
            try:
                search(name, web, door, "query" + "." * number)
            except ToolError as error:
                assert SECRET not in "".join(traceback.format_exception(error))
        export_jsonl(door.file, tmp_path / "calls.jsonl")
        for shown in (SECRET, "sk-Very", "Secret%2BKey"):
            assert shown not in (tmp_path / "calls.jsonl").read_text()
            assert shown not in caplog.text


# --- the floor under them ---------------------------------------------------------------------------------------------


def client(web: LocalWeb, **changes: Any) -> httpx.Client:
    return Door().open(Service("test", web.url, **({"limits": FAST, "rate": 1000.0} | changes)))


def test_retry_after_is_waited_for(web: LocalWeb) -> None:
    web.play(says(429, "", Retry_After="1"), says(200, "[]"))
    started = time.monotonic()
    assert client(web).get("/").status_code == 200
    assert 1.0 <= time.monotonic() - started < 2.0


def test_retry_after_as_a_date(web: LocalWeb) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    web.play(says(503, "", Retry_After=date))
    error = failing(lambda: client(web).get("/"), Unavailable)
    assert error.retry_after is not None and 3500 < error.retry_after <= 3600


@pytest.mark.parametrize("part", [drips, fifty_megabytes_unannounced])
def test_a_stream_that_does_not_end(web: LocalWeb, part: Part) -> None:
    web.play(part)
    if part is drips:
        failing(lambda: client(web, limits=QUICK).get("/"), Unavailable, 1.0)
    else:
        failing(lambda: client(web).get("/"), BadAnswer, 1.5)


def test_nobody_listens() -> None:
    closed = replace(TEXT_ENGINES["searxng"].service, base_url="http://127.0.0.1:1", limits=FAST)
    assert "could not be reached" in str(failing(lambda: Door().open(closed).get("/"), Unavailable))


def test_missing_and_broken_keys(web: LocalWeb, monkeypatch: pytest.MonkeyPatch) -> None:
    web.play(says(200, "{}"))
    monkeypatch.delenv("SERPER_API_KEY")
    assert "SERPER_API_KEY" in str(failing(lambda: search("serper", web), KeyRefused))
    monkeypatch.setenv("SERPER_API_KEY", "two words")
    assert "two words" not in str(failing(lambda: search("serper", web), KeyRefused))
    assert web.seen == []


def test_a_placeholder_for_a_key_does_not_eat_words(web: LocalWeb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERPER_API_KEY", "EMPTY")
    web.play(says(200, {"organic": [ROW | {"snippet": "The EMPTY Quarter"}]}))
    assert search("serper", web)[0].text == "The EMPTY Quarter"


def test_rate_limits_that_speak_of_quotas_are_rate_limits(web: LocalWeb) -> None:
    per_minute = "Quota exceeded for quota metric 'Requests' and limit 'Requests per minute' of service"
    web.play(says(429, {"error": {"code": 429, "message": per_minute, "status": "RESOURCE_EXHAUSTED"}}))
    failing(lambda: search("google_vision", web), RateLimited)
    web.play(
        says(429, {"error": {"code": "RATE_LIMITED", "meta": {"quota_limit": 2000}}}, X_RateLimit_Remaining="0, 9")
    )
    failing(lambda: search("brave", web), RateLimited)


def test_brave_refuses_keys_with_422(web: LocalWeb) -> None:
    web.play(
        says(422, {"error": {"code": "SUBSCRIPTION_TOKEN_INVALID", "detail": "The token is invalid.", "status": 422}})
    )
    failing(lambda: search("brave", web), KeyRefused)


@pytest.mark.parametrize(("name", "setting"), [("searxng", "search.formats"), ("wikimedia", "MMSR_CONTACT")])
def test_a_refusal_that_a_setting_would_end_stops_the_run_and_names_it(name: str, setting: str, web: LocalWeb) -> None:
    for body in ("<html>Forbidden</html>", "Please set a user-agent and respect our robot policy https://w.wiki/4wJS."):
        web.play(says(403, body, Content_Type="text/plain"))
        error = failing(lambda: search(name, web), SetUpFirst)
        assert setting in str(error) and isinstance(error, FatalToolError) and len(web.seen) == 1


def test_the_contact_is_sent_or_named_where_it_cannot_be(web: LocalWeb, monkeypatch: pytest.MonkeyPatch) -> None:
    web.play(*CASES["wikimedia"].success)
    monkeypatch.setenv("MMSR_CONTACT", "me@lab.example")
    search("wikimedia", web)
    assert "contact: me@lab.example)" in web.seen[0].headers["user-agent"]
    for contact in ("Zoë", "me@lab.example\nX-Evil: 1"):
        monkeypatch.setenv("MMSR_CONTACT", contact)
        assert "MMSR_CONTACT" in str(failing(lambda: search("wikimedia", web), SetUpFirst))
    assert len(web.seen) == 1


def test_engines_that_did_not_answer_are_asked_again_and_never_kept_as_a_finding(web: LocalWeb, tmp_path: Path) -> None:
    """SearXNG tells it in a success: "nothing was found" would stand in the record for ever."""
    silent = says(200, {"results": [], "unresponsive_engines": [["google", "CAPTCHA"], ["brave", "timeout"]]})
    web.play(silent, *CASES["searxng"].success)
    assert len(search("searxng", web)) == len(web.seen) == 2
    door = Door("record", tmp_path / "calls.sqlite")
    web.play(silent)
    assert "CAPTCHA" in str(failing(lambda: search("searxng", web, door), Unavailable))
    assert len(web.seen) == FAST.tries and door.failed == {"searxng": 1}
    assert stats(door.file)["searxng"]["errors"] == 1
    failing(lambda: search("searxng", web, Door("replay", door.file)), Unavailable)
    web.play(says(200, {"results": [ROW | TEXT], "unresponsive_engines": [["brave", "timeout"]]}))
    assert len(search("searxng", web, Door("record", door.file))) == 1  # the next recording asks again; some are enough


@pytest.mark.parametrize(
    ("name", "answer", "kind"),
    [
        ("serpapi", {"error": "Unsupported `xx` location."}, Refused),
        ("serpapi", {"error": "We couldn't get valid results for this search. Please try again later."}, Unavailable),
        ("google_vision", {"responses": [{"error": {"code": 3, "message": "Bad image data."}}]}, Refused),
        ("google_vision", {"responses": [{"error": {"code": 14, "message": "Unavailable."}}]}, Unavailable),
    ],
)
def test_a_success_that_tells_of_a_failure_is_not_kept_as_an_answer(
    name: str, answer: object, kind: type[ToolError], web: LocalWeb, tmp_path: Path
) -> None:
    web.play(says(200, answer))
    failing(lambda: search(name, web, Door("record", tmp_path / "calls.sqlite")), kind)
    assert len(web.seen) == (FAST.tries if kind is Unavailable else 1)
    failing(lambda: search(name, web, Door("replay", tmp_path / "calls.sqlite")), kind)
    web.play(*CASES[name].success)
    assert len(search(name, web, Door("record", tmp_path / "calls.sqlite"))) == 2


def test_budget_of_calls_counts_retries(web: LocalWeb) -> None:
    web.play(says(500, ""), says(200, {"organic": []}))
    door = Door(budget=Budget(calls=3))
    search("serper", web, door)
    search("serper", web, door)
    failing(lambda: search("serper", web, door), BudgetSpent)
    assert len(web.seen) == 3
    assert door.budget.summary() == {"serper": {"calls": 3, "money": pytest.approx(0.002)}}


def test_budget_of_money(web: LocalWeb) -> None:
    web.play(says(200, {"organic": []}))
    door = Door(budget=Budget(money=0.0015))
    search("serper", web, door)
    search("serper", web, door)
    assert "$0.00" in str(failing(lambda: search("serper", web, door), BudgetSpent))


def test_token_bucket_paces() -> None:
    bucket = TokenBucket(20.0)
    started = time.monotonic()
    for _ in range(26):
        bucket.take()
    assert 0.25 <= time.monotonic() - started < 0.6


def test_cookies_are_not_kept(web: LocalWeb) -> None:
    web.play(says(200, "{}", Set_Cookie="session=1; Path=/"))
    http = client(web)
    for _ in range(2):
        http.get("/")
    assert "cookie" not in web.seen[1].headers


def test_a_connection_is_used_again_unless_an_answer_broke_off(web: LocalWeb) -> None:
    ports = []

    def noted(part: Part) -> Part:
        def play(handler: Any) -> None:
            ports.append(handler.client_address[1])
            part(handler)

        return play

    fine = noted(says(200, "{}"))
    web.play(fine, fine, noted(fifty_megabytes), fine)
    client(web).get("/")
    client(web).get("/")
    failing(lambda: client(web).get("/"), BadAnswer)
    client(web).get("/")
    assert ports[0] == ports[1] == ports[2] != ports[3]


# --- small parts ------------------------------------------------------------------------------------------------------


def test_plain() -> None:
    assert plain(" a <span class='searchmatch'>b</span>\n&lt;c&gt; \ud800") == "a b <c> ?"
    assert plain(None) == plain(7) == ""


def test_vision_without_pages_gives_entities(web: LocalWeb) -> None:
    detection = {"webEntities": [{"entityId": "/m/1", "description": "Flag of Kenya", "score": 1.2}, {"score": 1}]}
    web.play(says(200, {"responses": [{"webDetection": detection}]}))
    assert [(hit.id, hit.title) for hit in search("google_vision", web)] == [("/m/1", "Flag of Kenya")]
    web.play(says(200, {"responses": [{"error": {"code": 3, "message": "Bad image data."}}]}))
    assert "Bad image data" in str(failing(lambda: search("google_vision", web), Refused))


def test_pictures_fit_and_hash_by_pixels() -> None:
    noise = Image.effect_noise((900, 900), 80).convert("RGB")
    assert len(jpeg(noise, 100_000)) <= 100_000
    assert picture_key(PICTURE) == picture_key(PICTURE.convert("RGBA")) != picture_key(PICTURE.rotate(180))
    assert read_picture(jpeg(PICTURE, 100_000)).size == PICTURE.size
    with pytest.raises(ValueError, match="not a picture"):
        read_picture(b"GIF89a but not really")

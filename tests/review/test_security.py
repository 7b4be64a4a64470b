"""No token, no page; no other host's name, no other site's post, nothing but the run."""

from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient
from review_browser import ORIGIN, PORT, Browser

from charactertrain.review.security import MAX_BODY_BYTES, Access

PAGES = ("/", "/judge", "/list/responses", "/reviews", "/static/style.css", "/nowhere")


@pytest.mark.parametrize("url", PAGES)
def test_without_a_session_everything_is_refused(app: Any, url: str) -> None:
    answer = TestClient(app, base_url=ORIGIN).get(url)
    assert answer.status_code == 403
    assert answer.text.startswith("403: ")
    assert TestClient(app, base_url=ORIGIN).post(url).status_code == 403


@pytest.mark.parametrize("query", ["token=", "token=guess", "token=%ED%A0%80", "token"])
def test_a_wrong_token_is_refused(app: Any, access: Access, query: str) -> None:
    access.invite("Ada")
    assert TestClient(app, base_url=ORIGIN).get(f"/?{query}").status_code == 403


def test_a_link_is_good_once(app: Any, access: Access) -> None:
    link = f"/?token={access.invite('Ada')}"
    first, second = (TestClient(app, base_url=ORIGIN) for _ in range(2))
    assert first.get(link).status_code == 200
    assert second.get(link).status_code == 403
    assert second.get("/").status_code == 403
    assert first.get("/").status_code == 200


def test_the_cookie_is_for_this_server_alone(app: Any, access: Access) -> None:
    answer = TestClient(app, base_url=ORIGIN).get(f"/?token={access.invite('Ada')}")
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith(f"charactertrain_review_{PORT}=")
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))


@pytest.mark.parametrize(
    "host", ["evil.example", f"evil.example:{PORT}", "127.0.0.1", "localhost:1", "", "[::1]:8123"]
)
def test_another_hosts_name_is_refused(browser: Browser, access: Access, host: str) -> None:
    assert browser.client.get("/", headers={"host": host}).status_code == 403
    token = access.invite("Ben")
    assert browser.client.get(f"/?token={token}", headers={"host": host}).status_code == 403


def test_localhost_is_this_machine(browser: Browser) -> None:
    cookie = "; ".join(f"{name}={value}" for name, value in browser.client.cookies.items())
    headers = {"host": f"localhost:{PORT}", "cookie": cookie}
    assert browser.client.get("/", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": f"https://127.0.0.1:{PORT}"},
        {"origin": f"http://localhost:{PORT}"},
        {"origin": ORIGIN, "sec-fetch-site": "cross-site"},
        {"origin": ORIGIN, "sec-fetch-site": "same-site"},
        {"sec-fetch-site": "none"},
        {},
    ],
)
def test_posts_from_elsewhere_are_refused(browser: Browser, headers: dict[str, str]) -> None:
    answer = browser.client.post("/export", data={"nonce": "1"}, headers=headers)
    assert answer.status_code == 403


@pytest.mark.parametrize(
    "headers", [{"origin": ORIGIN}, {"origin": ORIGIN, "sec-fetch-site": "same-origin"}]
)
def test_posts_of_our_own_pages_are_taken(browser: Browser, headers: dict[str, str]) -> None:
    answer = browser.client.post(
        "/export", data={"nonce": "1"}, headers=headers, follow_redirects=False
    )
    assert answer.status_code == 303


def test_a_post_is_bounded(browser: Browser) -> None:
    headers = {"origin": ORIGIN}
    post = browser.client.post
    assert post("/trait", content=b"x" * (MAX_BODY_BYTES + 1), headers=headers).status_code == 413
    assert post("/trait", content=iter([b"x"]), headers=headers).status_code == 411
    many = "&".join(f"a{number}=1" for number in range(40))
    assert post("/trait", content=many, headers=headers).status_code == 400


@pytest.mark.parametrize("url", [*PAGES, "/?token=guess"])
def test_every_answer_has_the_headers(browser: Browser, url: str) -> None:
    headers = browser.client.get(url).headers
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'self';")
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"


@pytest.mark.parametrize("page", ["/", "/judge", "/naming", "/agreement", "/prompt?id=p1"])
def test_pages_have_no_inline_script_or_style(browser: Browser, page: str) -> None:
    text = browser.get(page)
    assert text.count("<script") == 1
    assert "<script src=" in text
    assert "<style" not in text
    assert " style=" not in text
    assert " onclick=" not in text


@pytest.mark.parametrize(
    "url",
    [
        "/static/..%2f..%2fapp.py",
        "/static/%2e%2e/app.py",
        "/list/..%2f..%2fetc",
        "/prompt?id=../../../etc/passwd",
        "/trait?id=..%2f..%2fconfig",
        "/..%2f..%2fetc/passwd",
    ],
)
def test_no_part_of_an_address_is_a_path(browser: Browser, url: str) -> None:
    answer = browser.client.get(url)
    assert answer.status_code == 404
    assert "root:" not in answer.text


def test_a_session_is_the_reviewers_that_was_invited(
    enter: Callable[[str], Browser],
) -> None:
    ada, ben = enter("Ada"), enter("<b>Ben</b>")
    assert "Reviewing as</span><br>Ada" in ada.get("/")
    assert "Reviewing as</span><br>&lt;b&gt;Ben&lt;/b&gt;" in ben.get("/")

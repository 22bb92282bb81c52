"""Who is let through: every address, every refusal."""

import pytest
from starlette.testclient import TestClient
from studios import HOST, TOKEN, client, make_run, photo, studio

from dreambooth_jax.studio import following, guards, routes
from dreambooth_jax.studio.server import application

TABLE = (*routes.ROUTES, *following.ROUTES)
ADDRESSES = ["/", "/live", "/assets/studio.css", *sorted({route.path for route in TABLE})]


@pytest.fixture
def own(tmp_path):
    make_run(tmp_path / "bird")
    return studio(tmp_path)


@pytest.mark.parametrize("address", ADDRESSES)
def test_nothing_is_shown_without_the_token(own, address):
    without_token = client(own, known=False)
    filled = address.format(
        run="bird", grid="after", file="00_00.png", subject="a", photo="b", key="c", name="d"
    )
    for answer in (without_token.get(filled), without_token.post(filled, headers={"origin": HOST})):
        assert answer.status_code == 401
        assert "token" in answer.text and "bird" not in answer.text


def test_the_token_becomes_a_cookie_that_scripts_do_not_read(own):
    without_token = client(own, known=False)
    answer = without_token.get(f"/run/bird?token={TOKEN}&x=1")
    assert (answer.status_code, answer.headers["location"]) == (303, "/run/bird?x=1")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie
    assert without_token.get("/run/bird").status_code == 200
    for wrong in ("", "x", TOKEN[:-1], TOKEN + "x", "é"):
        assert client(own, known=False).get("/", params={"token": wrong}).status_code == 401
    elsewhere = without_token.get(f"{HOST}//evil.example/?token={TOKEN}")
    assert elsewhere.headers["location"] == "/evil.example/"


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "", "localhost.evil:80"]
)
def test_another_host_name_is_a_rebound_one(own, host):
    browser = client(own)
    assert browser.get("/", headers={"host": host}).status_code == 400
    assert browser.get(f"/?token={TOKEN}", headers={"host": host}).status_code == 400


@pytest.mark.parametrize("host", ["localhost:9000", "127.0.0.1", "LOCALHOST", "[::1]:8765"])
def test_a_tunnel_may_have_another_port(own, host):
    browser = client(own)
    cookie = "; ".join(f"{k}={v}" for k, v in browser.cookies.items())
    assert browser.get("/", headers={"host": host, "cookie": cookie}).status_code == 200


@pytest.mark.parametrize(
    "origin", [None, "null", "", "http://evil.example", "http://localhost:1", "http://localhost"]
)
def test_another_page_cannot_send_forms(own, origin):
    browser = client(own)
    del browser.headers["origin"]
    headers = {} if origin is None else {"origin": origin}
    answer = browser.post("/new", data={"subject": "duck"}, headers=headers)
    assert answer.status_code == 403
    assert own.places.subjects() == []
    assert browser.post("/new", data={"subject": "duck"}, headers={"origin": HOST}).is_redirect
    assert own.places.subjects() == ["duck"]


def test_what_is_too_large_is_refused_before_it_is_read(own, monkeypatch):
    monkeypatch.setattr(guards, "LARGEST", 10_000)
    browser = client(own)
    own.places.new_subject("duck")
    sent = {"photo": ("a.jpg", b"x" * 20_000, "image/jpeg")}
    assert browser.post("/new/duck/photos", files=sent).status_code == 413

    def drip():  # no length is told
        for _ in range(30):
            yield b"x" * 1000

    headers = {"content-type": "multipart/form-data; boundary=b"}
    assert browser.post("/new/duck/photos", content=drip(), headers=headers).status_code == 413
    headers["content-length"] = "-1"
    assert browser.post("/new/duck/photos", content=b"", headers=headers).status_code == 413


def test_every_answer_forbids_what_the_pages_do_not_need(own):
    browser = client(own)
    answers = [browser.get(path) for path in ("/", "/run/bird", "/nowhere", "/assets/studio.js")]
    answers.append(client(own, known=False).get("/"))
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy and "http" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "same-origin"
    assert browser.get("/").headers["cache-control"] == "no-store"


def test_a_report_runs_its_scripts_without_an_origin(own, tmp_path):
    (tmp_path / "bird" / "report.html").write_text("<script>1</script>")
    answer = client(own).get("/run/bird/report")
    assert answer.text == "<script>1</script>"
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("sandbox allow-scripts") and "allow-same-origin" not in policy


def test_only_get_and_post_are_answered(own):
    browser = client(own)
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS"):
        assert browser.request(method, "/run/bird").status_code == 405
    assert browser.get("/run/bird/stop").status_code == 405


def test_web_sockets_are_not_accepted(own):
    app = application(own, token=TOKEN)
    with pytest.raises(Exception), TestClient(app).websocket_connect("/"):  # noqa: B017, PT011 (whichever)
        pass


def test_a_photo_is_no_page(own):
    """What was sent is never sent back under a name or type of the sender's."""
    browser = client(own)
    own.places.new_subject("duck")
    evil = {"photo": ('<script>.html"', photo(), "text/html")}
    assert browser.post("/new/duck/photos", files=evil).is_redirect
    assert [path.name for path in own.places.subject("duck").iterdir()] == ["photo_01.jpg"]
    assert browser.get("/photos/duck/photo_01.jpg").headers["content-type"] == "image/webp"

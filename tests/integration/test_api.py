"""The HTTP API over real servers and workers: whose is what, and no stream ends that did not."""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import socket
import uuid
from collections.abc import Iterator
from urllib.parse import quote

import httpx2
import pytest
from support.served import Served, ended, serve, text_of
from support.simulated import simulated
from support.stack import Stack, eventually, provider
from support.valkey import RestartableValkey

ACME, OTHER = "acme-token-0123456789", "other-token-0123456789"
TEXT = "The parties agree. The sun shines over the hills of the north. Nobody objects to it."


class Installation:
    """Two servers, a worker, and the simulated provider that they ask."""

    def __init__(self, stack: Stack, sim, servers: list[Served]) -> None:
        self.stack, self.sim = stack, sim
        self.one, self.two = servers

    def document(self, text: str = TEXT) -> str:
        document_id = f"doc-{uuid.uuid4().hex}"
        new = {"documents": [{"id": document_id, "text": f"{text} {document_id}"}]}
        (added,) = self.one.post("/documents", new)
        assert added["status"] == "added"
        return document_id

    def job(self, task: str = "summarize", **more) -> str:
        body = {"document_id": self.document(), "task_type": task, **more}
        return self.one.post("/jobs", body, 202)["job_id"]

    def done(self, job_id: str) -> dict:
        def look():
            row = self.one.get(f"/jobs/{job_id}")
            return row if row["state"] in {"completed", "failed", "cancelled"} else None

        return eventually(look, "the job has ended")


@pytest.fixture(scope="module")
def _installation(tmp_path_factory, sqlite_file) -> Iterator[Installation]:
    with contextlib.ExitStack() as ending:
        sim = ending.enter_context(simulated())
        broker = RestartableValkey()
        ending.callback(broker.stop)
        stack = Stack(
            tmp_path_factory.mktemp("api"),
            broker_url=broker.url,
            database_url=None,
            providers=[provider(sim.openai_url, max_concurrency=20)],
            settings={
                "api": {"tokens": [f"acme:{ACME}", f"other:{OTHER}"], "max_body_bytes": 100_000},
                "metrics": {"password": "m3trics"},
            },
        )
        ending.callback(stack.close)
        stack.give_database(sqlite_file)
        servers = [serve(stack, token=ACME) for _ in range(2)]
        stack.worker()
        yield Installation(stack, sim, servers)


@pytest.fixture
def here(_installation) -> Installation:
    _installation.sim.reset()
    return _installation


# Whose it is


def test_a_job_goes_from_its_document_to_its_result(here):
    job_id = here.job(options={"max_words": 40})
    row = here.done(job_id)
    assert row["state"] == "completed"
    assert row["output"].startswith("The parties agree.")
    assert row["usage"]["output_tokens"] > 0


def test_without_a_token_or_with_a_wrong_one_nothing_is_told(here):
    for token in (None, "wrong-token-0123456789", ACME[:-1]):
        stranger = here.one.with_token(token)
        for method, path in (
            ("GET", "/documents"),
            ("GET", "/jobs/x"),
            ("GET", "/batches/x"),
            ("GET", "/batches/x/events"),
            ("GET", "/jobs/x/stream"),
            ("POST", "/jobs/x/cancel"),
            ("POST", "/chat/stream"),
            ("GET", "/providers"),
            ("GET", "/task-types"),
        ):
            answer = stranger.request(method, path)
            assert answer.status_code == 401, (method, path)
            assert answer.headers["www-authenticate"] == "Bearer"
        assert stranger.get("/health") == {"status": "ok"}


def test_what_is_anothers_is_as_unknown_as_what_is_not_there(here):
    other = here.one.with_token(OTHER)
    document_id = here.document()
    batch = here.one.post(
        "/batches", {"document_ids": [document_id], "task_type": "summarize"}, 202
    )["batch_id"]
    job_id = here.job()
    for method, path in (
        ("GET", f"/documents/{document_id}"),
        ("GET", f"/jobs/{job_id}"),
        ("GET", f"/jobs/{job_id}/stream"),
        ("POST", f"/jobs/{job_id}/cancel"),
        ("POST", f"/jobs/{job_id}/retry"),
        ("GET", f"/batches/{batch}"),
        ("GET", f"/batches/{batch}/results"),
        ("GET", f"/batches/{batch}/events"),
        ("POST", f"/batches/{batch}/cancel"),
        ("POST", f"/batches/{batch}/retry"),
    ):
        theirs = other.ask(method, path, 404)["error"]
        nobodys = other.ask(
            method, path.replace(document_id, "x").replace(job_id, "x").replace(batch, "x"), 404
        )["error"]
        assert theirs["type"] == nobodys["type"]
    assert document_id not in other.get("/documents?limit=1000")["document_ids"]
    assert other.post("/batches", {"all": True, "task_type": "summarize"}, 422)


# Documents and batches


def test_documents_are_added_listed_in_pages_and_read(here):
    mine = [here.document() for _ in range(5)]
    found, after = [], ""
    while True:
        page = here.one.get("/documents", params={"limit": 2, "after": after})
        found += page["document_ids"]
        if page["next"] is None:
            break
        after = page["next"]
    assert set(mine) <= set(found)
    assert found == sorted(set(found))
    read = here.one.get(f"/documents/{mine[0]}")
    assert read["text"].startswith(TEXT)


def test_a_document_that_cannot_be_stored_keeps_no_other_from_it(here):
    name = f"folder/{uuid.uuid4().hex} ü.txt"
    new = [{"text": "  "}, {"id": name, "text": TEXT}, {"id": name, "text": TEXT}]
    statuses = [one["status"] for one in here.one.post("/documents", {"documents": new})]
    assert statuses == ["error", "added", "exists"]
    assert here.one.get(f"/documents/{name}")["document_id"] == name
    put = here.one.ask(
        "PUT", f"/documents/{name}", content=b"<html><body><h1>Hi</h1></body></html>"
    )
    assert (put["document_id"], put["status"]) == (name, "updated")
    assert here.one.get(f"/documents/{name}")["text"] == "# Hi"
    assert here.one.ask("PUT", "/documents/empty", 422, content=b"")["error"]["type"]


def test_a_batch_is_watched_to_its_end_and_its_results_are_lines(here):
    ids = [here.document() for _ in range(4)] + ["missing"]
    here.sim.latency(0.3)
    body = {"document_ids": ids, "task_type": "summarize", "batch_id": uuid.uuid4().hex}
    made = here.one.post("/batches", body, 202)
    assert made["jobs"] == 5
    assert here.one.post("/batches", body, 409)["error"]["type"] == "BatchExists"
    batch = made["batch_id"]
    events = here.one.all_events("GET", f"/batches/{batch}/events")
    assert ended(events)
    shapes = [one.data for one in events[:-1]]
    assert shapes[-1]["state"] == "partial"
    assert (shapes[-1]["completed"], shapes[-1]["failed"]) == (4, 1)
    assert all(later != earlier for earlier, later in itertools.pairwise(shapes))
    assert shapes[-1] == here.two.get(f"/batches/{batch}")
    assert shapes[-1] == here.stack.json("status", batch, inside=True, code=None)
    for path in ("", "/stream"):
        here.one.get(f"/jobs/{batch}{path}", 404)
    here.one.post(f"/jobs/{batch}/cancel", status=404)
    lines = here.two.request("GET", f"/batches/{batch}/results").text.splitlines()
    assert [json.loads(line)["document_id"] for line in lines] == ids
    assert here.one.post(f"/batches/{batch}/retry", {"failed_only": True}) == {"jobs": 1}
    assert here.one.post(f"/batches/{batch}/cancel")["jobs"] in {0, 1}


@pytest.mark.parametrize(
    ("path", "body", "status", "name"),
    [
        ("/jobs", {"document_id": "d", "task_type": "nope"}, 422, "UnknownTaskType"),
        ("/jobs", {"document_id": "d", "task_type": "translate"}, 422, "InvalidOption"),
        ("/jobs", {"document_id": "d"}, 422, "InvalidRequest"),
        ("/jobs", {"document_id": 5, "task_type": "summarize"}, 422, "InvalidRequest"),
        ("/jobs", {"document_id": "d\0", "task_type": "summarize"}, 422, "InvalidRequest"),
        ("/jobs", {"document_id": "d", "task_type": "summarize", "x": 1}, 422, "InvalidRequest"),
        (
            "/jobs",
            {"document_id": "d", "task_type": "summarize", "options": {"tenant": "other"}},
            422,
            "InvalidOption",
        ),
        ("/batches", {"document_ids": [], "task_type": "summarize"}, 422, "InvalidRequest"),
        ("/batches", {"task_type": "summarize"}, 422, "UsageError"),
        ("/chat/stream", {"messages": []}, 422, "InvalidRequest"),
        (
            "/chat/stream",
            {"messages": [{"role": "assistant", "content": "x"}]},
            422,
            "InvalidOption",
        ),
        (
            "/chat/stream",
            {"messages": [{"role": "user", "content": "x"}], "model": "nobody"},
            422,
            "InvalidOption",
        ),
    ],
)
def test_what_is_wrong_is_said_at_once_and_nothing_is_submitted(here, path, body, status, name):
    assert here.one.post(path, body, status)["error"]["type"] == name
    assert here.sim.stats()["requests"] == 0


# Answers while they are written


def test_a_jobs_answer_is_read_while_it_is_written_and_again_at_another_server(here):
    here.sim.latency(1.5, first_token_s=0.1)
    job_id = here.job(stream=True)
    first = []
    with here.one.events("GET", f"/jobs/{job_id}/stream") as events:
        for one in events:
            first.append(one)
            if len(first) == 2:
                break
    assert all(one.id for one in first)
    assert here.one.get(f"/jobs/{job_id}")["state"] == "running"
    rest = here.two.all_events(
        "GET", f"/jobs/{job_id}/stream", headers={"last-event-id": first[-1].id}
    )
    assert ended(rest)
    row = here.done(job_id)
    assert text_of(first) + text_of(rest) == row["output"]
    assert not {one.kind for one in rest} & {"reset", "error"}
    assert rest[-2].kind == "result"
    assert rest[-2].data == row
    late = here.two.all_events("GET", f"/jobs/{job_id}/stream")
    assert text_of(late) == row["output"]
    assert ended(late)
    lost = here.one.all_events("GET", f"/jobs/{job_id}/stream", headers={"last-event-id": "7-7"})
    assert lost[0].kind == "reset"
    assert text_of(lost) == row["output"]


def test_a_job_that_is_not_streamed_is_shown_whole_when_it_is_there(here):
    here.sim.latency(0.3)
    job_id = here.job()
    events = here.one.all_events("GET", f"/jobs/{job_id}/stream")
    assert ended(events)
    assert text_of(events) == here.done(job_id)["output"]


def test_an_extract_is_streamed_as_the_json_that_it_is(here):
    job_id = here.job("extract", stream=True)
    events = here.one.all_events("GET", f"/jobs/{job_id}/stream")
    assert ended(events)
    assert json.loads(text_of(events)).keys() == here.done(job_id)["output"].keys()


def test_a_stream_of_a_job_that_fails_ends_in_its_error(here):
    body = {"document_id": "missing", "task_type": "summarize", "stream": True}
    job_id = here.one.post("/jobs", body, 202)["job_id"]
    events = here.one.all_events("GET", f"/jobs/{job_id}/stream")
    assert events[-1].kind == "error"
    assert events[-1].data["error"]["type"] == "DocumentNotFound"


def test_an_answer_that_breaks_off_begins_anew_before_its_readers_eyes(here):
    here.sim.latency(0.6, first_token_s=0.1)
    here.sim.faults(kind="cut_stream", next=1)
    job_id = here.job(stream=True)
    events = here.one.all_events("GET", f"/jobs/{job_id}/stream")
    assert ended(events)
    assert "reset" in {one.kind for one in events}
    assert text_of(events) == here.done(job_id)["output"]


def test_a_stream_goes_on_when_another_worker_takes_the_job_over(make_stack, sim):
    stack = make_stack(
        providers=[provider(sim.openai_url)], settings={"delivery": {"lease_s": 2.0}}
    )
    sim.latency(3.0, first_token_s=0.1)
    server = serve(stack)
    server.post("/documents", {"documents": [{"id": "d", "text": TEXT}]})
    victim = stack.worker()
    body = {"document_id": "d", "task_type": "summarize", "stream": True}
    job_id = server.post("/jobs", body, 202)["job_id"]
    with server.events("GET", f"/jobs/{job_id}/stream") as following:
        events = [next(following)]
        victim.kill()
        sim.latency(0.2)
        stack.worker()
        events += following
    assert ended(events)
    assert "reset" in {one.kind for one in events}
    assert text_of(events) == server.get(f"/jobs/{job_id}")["output"]


# Chat


CHAT = {
    "messages": [{"role": "user", "content": "Tell of the sun, and of the hills of the north."}]
}


def test_a_chat_streams_its_tokens_says_how_it_ended_and_is_done(here):
    here.sim.latency(0.5, first_token_s=0.1)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "Ms Doe."},
        *CHAT["messages"],
    ]
    events = here.one.all_events("POST", "/chat/stream", json={"messages": messages})
    assert ended(events)
    *tokens, end, _ = events
    assert len(tokens) > 1
    assert end.kind == "end"
    assert end.data["finish_reason"] == "stop"
    assert end.data["usage"]["output_tokens"] > 0
    (line,) = here.sim.log()
    assert line["stream"]
    assert line["whole"]


def test_an_answer_that_is_cut_by_its_limit_says_so(here):
    body = {**CHAT, "max_output_tokens": 3}
    events = here.one.all_events("POST", "/chat/stream", json=body)
    assert ended(events)
    assert events[-2].data["finish_reason"] == "length"


@pytest.mark.parametrize("fault", ["500", "reset"])
def test_a_call_that_breaks_before_its_first_token_is_asked_again(here, fault):
    here.sim.faults(kind=fault, next=1)
    events = here.one.all_events("POST", "/chat/stream", json=CHAT)
    assert ended(events)
    assert here.sim.stats()["requests"] == 2


def test_a_call_that_breaks_before_its_first_token_is_asked_elsewhere(make_stack, sim):
    stack = make_stack(providers=[provider(sim.openai_url, name) for name in ("broken", "well")])
    sim.faults(kind="500", model="model-broken")
    server = serve(stack)
    for _ in range(4):
        events = server.all_events("POST", "/chat/stream", json=CHAT)
        assert ended(events)
        assert events[-2].data["provider"] == "well"


def test_a_stream_without_a_finish_is_an_error_and_never_an_end(here):
    here.sim.faults(kind="cut_stream", next=1)
    events = here.one.all_events("POST", "/chat/stream", json=CHAT)
    assert events[-1].kind == "error"
    assert events[-1].data["error"]["type"] == "InvalidResponse"
    assert "[DONE]" not in [one.data for one in events]
    assert here.sim.stats()["requests"] == 1, "what was read cannot be asked elsewhere"


def test_a_client_that_leaves_cancels_its_call_and_frees_its_place(here):
    here.sim.latency(30.0, first_token_s=0.1)
    with here.one.events("POST", "/chat/stream", json=CHAT) as events:
        next(events)
    eventually(lambda: here.sim.stats()["in_flight"] == 0, "the call is given up")
    (line,) = here.sim.log()
    assert line["status"] == 499

    def place() -> int:
        (standing,) = here.one.get("/providers")
        return standing["in_flight"]

    eventually(lambda: place() == 0, "the place is free")


def test_a_client_that_leaves_before_the_first_token_cancels_its_call(here):
    here.sim.latency(30.0)
    with pytest.raises(httpx2.TimeoutException):
        here.one.request("POST", "/chat/stream", json=CHAT, timeout=1.0)
    eventually(here.sim.log, "the call was made")
    eventually(lambda: here.sim.stats()["in_flight"] == 0, "the call is given up")


def test_a_provider_that_is_out_is_said_by_a_status_with_when_to_come_back(make_stack, sim):
    stack = make_stack(providers=[provider(sim.openai_url)])
    sim.faults(kind="429", next=1, retry_after=30)
    server = serve(stack)
    answer = server.request("POST", "/chat/stream", json=CHAT)
    assert answer.status_code == 503
    assert 20 <= int(answer.headers["retry-after"]) <= 30


# Guards


def test_a_body_that_is_too_large_is_refused_also_when_it_does_not_say_so(here):
    whole = here.one.request("PUT", "/documents/big", content=b"x" * 200_000)
    chunked = here.one.request("PUT", "/documents/big", content=(b"x" * 1_000 for _ in range(200)))
    assert (whole.status_code, chunked.status_code) == (413, 413)
    here.one.get("/documents/big", 404)


def test_a_body_of_json_that_is_too_large_is_said_to_be_so_when_it_comes_in_pieces(here):
    headers = {"content-type": "application/json"}
    pieces = (b" " * 1_000 for _ in range(200))
    answer = here.one.request("POST", "/jobs", content=pieces, headers=headers)
    assert answer.status_code == 413
    assert answer.json()["error"]["type"] == "TooLarge"


JOB = b'{"document_id": "d", "task_type": "summarize", "options": %s}'


@pytest.mark.parametrize(
    ("body", "headers", "status", "words"),
    [
        (JOB % b"{}", {"content-type": "text/plain"}, 415, "Content-Type: application/json"),
        (JOB % (b"[" * 50_000), {}, 400, "nested too deeply"),
        (JOB % (b'{"style": %s}' % (b"[" * 900 + b"]" * 900)), {}, 422, "nested too deeply"),
        (b'{"task_type": "\xff"}', {}, 400, "UTF-8"),
        (b'{"task_type": ', {}, 422, "no JSON"),
        (JOB % b'{"max_words": NaN}', {}, 422, "max_words"),
        (b'{"' + b"x" * 10_000 + b'": 1}', {}, 422, "document_id: is required"),
    ],
)
def test_a_body_that_cannot_be_read_is_told_what_is_wrong_with_it(
    here, body, headers, status, words
):
    headers = {"content-type": "application/json", **headers}
    answer = here.one.request("POST", "/jobs", content=body, headers=headers)
    assert answer.status_code == status
    assert words in answer.json()["error"]["message"]
    assert len(answer.text) < 500


def test_half_a_surrogate_pair_in_a_chat_is_the_clients_fault_and_asks_nobody(here):
    chat = json.dumps({"messages": [{"role": "user", "content": "\ud800"}]}).encode()
    headers = {"content-type": "application/json"}
    refused = here.one.ask("POST", "/chat/stream", 422, content=chat, headers=headers)
    assert "half a surrogate pair" in refused["error"]["message"]
    assert here.sim.stats()["requests"] == 0


def test_what_was_added_can_be_asked_for_whatever_its_id(here):
    name = f"two\nlines/{uuid.uuid4().hex}"
    here.one.post("/documents", {"documents": [{"id": name, "text": TEXT}]})
    assert here.one.get(f"/documents/{quote(name)}")["document_id"] == name
    batch = {"document_ids": [name], "task_type": "summarize", "batch_id": "with/slash"}
    assert here.one.post("/batches", batch, 422)["error"]["type"] == "InvalidRequest"


def test_a_whole_number_may_have_a_point(here):
    assert here.one.post(
        "/jobs", {"document_id": "d", "task_type": "summarize", "priority": 3.0}, 202
    )


def test_a_wrong_method_is_told_all_the_right_ones(here):
    refused = here.one.request("DELETE", "/documents")
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, POST")
    assert here.one.request("HEAD", "/health").status_code == 200


@contextlib.contextmanager
def connected(served: Served, sent: bytes) -> Iterator[socket.socket]:
    url = httpx2.URL(served.url)
    with socket.create_connection((url.host, url.port), timeout=90.0) as connection:
        connection.sendall(sent)
        yield connection


def test_what_is_no_http_is_told_so_in_the_one_shape(here):
    with connected(here.one, b"\x00\x01 hello\r\n\r\n") as connection:
        said = b"".join(iter(lambda: connection.recv(4_096), b""))
    assert said.startswith(b"HTTP/1.1 400")
    assert json.loads(said.partition(b"\r\n\r\n")[2])["error"]["type"] == "BadRequest"


def test_a_client_who_leaves_within_its_request_is_no_fault_of_the_servers(here):
    head = (
        b"POST /jobs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: 9\r\n\r\n{"
    )
    before = here.one.process.output().count("request-failed")
    for _ in range(3):
        with connected(here.one, head % ACME.encode()) as connection:
            connection.shutdown(socket.SHUT_RDWR)
    here.one.get("/documents")
    assert here.one.process.output().count("request-failed") == before


@pytest.mark.chaos
def test_who_sends_half_a_request_or_reads_nothing_is_not_waited_for(here):
    auth = b"Host: x\r\nAuthorization: Bearer %s\r\n" % ACME.encode()
    with (
        connected(here.one, b"GET /health HTTP/1.1\r\nHo") as head,
        connected(
            here.one, b"PUT /documents/half HTTP/1.1\r\n%sContent-Length: 9\r\n\r\nx" % auth
        ) as body,
    ):
        assert head.recv(4_096) == b""
        assert body.recv(4_096).startswith(b"HTTP/1.1 408")


def test_pages_of_other_sites_are_refused(here):
    headers = {"origin": "https://elsewhere.example"}
    assert here.one.post("/jobs/x/cancel", status=403, headers=headers)
    same = {"origin": here.one.url}
    assert here.one.post("/jobs/x/cancel", status=404, headers=same)


def test_metrics_are_the_operators(here):
    here.one.get("/metrics/targets", 401)
    answer = here.one.request("GET", "/metrics", auth=("llmtasks", "m3trics"))
    assert "llm_api_streams" in answer.text
    (target,) = here.one.get("/metrics/targets", auth=("llmtasks", "m3trics"))
    scraped = httpx2.get(f"http://{target['targets'][0]}/metrics", auth=("llmtasks", "m3trics"))
    assert "llm_jobs_total" in scraped.text


# A server's life


def test_a_server_that_stops_ends_streams_that_can_be_resumed_and_lets_chats_end(make_stack, sim):
    stack = make_stack(providers=[provider(sim.openai_url)])
    sim.latency(1.5, first_token_s=0.1)
    server = serve(stack)
    server.post("/documents", {"documents": [{"id": "d", "text": TEXT}]})
    job = server.post("/jobs", {"document_id": "d", "task_type": "summarize"}, 202)["job_id"]
    with (
        server.events("POST", "/chat/stream", json=CHAT) as chat,
        server.events("GET", f"/batches/{job}/events") as watching,
    ):
        said, stood = [next(chat)], [next(watching)]
        server.process.signal(signal.SIGTERM)
        stood += watching
        said += chat
    assert "[DONE]" not in [one.data for one in stood], "the batch has not ended"
    assert ended(said)
    assert server.process.wait() == 0


def test_without_redis_a_server_says_so_and_serves_what_is_stored(make_stack, sim, own_valkey):
    stack = make_stack(
        providers=[provider(sim.openai_url)],
        broker=own_valkey,
        settings={"api": {"chat_wait_s": 1.0}},
    )
    server = serve(stack)
    server.post("/documents", {"documents": [{"id": "d", "text": TEXT}]})
    worker = stack.worker()
    job_id = server.post("/jobs", {"document_id": "d", "task_type": "summarize"}, 202)["job_id"]
    assert ended(server.all_events("GET", f"/jobs/{job_id}/stream"))
    worker.terminate()
    own_valkey.stop()
    assert server.get("/ready", 503) == {"database": "ok", "redis": "does not answer"}
    assert text_of(server.all_events("GET", f"/jobs/{job_id}/stream")).startswith("The parties")
    assert server.post("/jobs", {"document_id": "d", "task_type": "summarize"}, 202)
    refused = server.post("/chat/stream", CHAT, 503)["error"]
    assert refused["type"] == "NotNow"
    assert "Redis" in refused["message"]


def test_without_tokens_a_server_answers_to_this_machine_alone(make_stack, sim):
    stack = make_stack(providers=[provider(sim.openai_url)])
    server = serve(stack)
    assert server.get("/documents") == {"document_ids": [], "next": None}
    assert server.get("/documents", 403, headers={"host": "rebound.example"})
    refused = stack.cli("serve", "--host", "0.0.0.0", code=2)
    assert "api.tokens: is required to listen on 0.0.0.0" in refused.stderr
    port = server.url.rpartition(":")[2]
    taken = stack.cli("serve", "--port", port, code=2)
    assert f"api.port: cannot listen on 127.0.0.1:{port}: Address already in use" in taken.stderr

"""Engines that are not ours are judged by what their descriptions say: contract, tables, processes."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from engine.settings import Settings
from simulation.errors import EngineError
from simulation.run import find_target, run
from simulation.scenario.loading import load_scenario
from simulation.scenario.schema import Scenario
from simulation.target.engine_process import start_engine
from simulation.target.foreign import programs
from simulation.target.foreign.description import Description, Program
from simulation.target.foreign.engine import Engine, find_engine
from simulation.target.foreign.loading import load_description
from simulation.target.foreign.programs import Programs, try_command
from simulation.target.foreign.tokens import read_tokens
from simulation.target.services import Services
from simulation.tests.cli.test_cli import flashsim
from simulation.tests.drive.test_open_loop import free_port
from simulation.tests.test_run import PATIENT
from simulation.verdict import finish_run

PLAIN = Path(__file__).with_name("plain_engine.py")


def small_spike(**overrides: Any) -> Scenario:
    changes = PATIENT | {"thresholds": [], "drain_s": 30} | overrides
    return load_scenario("spike", changes, rate_rps=200, duration_s=3, stock=60)


async def is_open(port: int) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return


@asynccontextmanager
async def plain_engine(postgres_url: str, *words: str) -> AsyncIterator[int]:
    port = free_port()
    process = await asyncio.create_subprocess_exec(sys.executable, PLAIN, str(port), postgres_url, *words)
    try:
        await is_open(port)
        yield port
    finally:
        process.terminate()
        await process.wait()


async def judge(
    scenario: Scenario, folder: Path, engine: Engine, url: str, say: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    target = find_target((url,), None, None, scenario, engine)
    await run(scenario, folder, say, target=target, engine=engine)
    return finish_run(folder)


def states(summary: dict[str, Any]) -> dict[str, str]:
    return {check["name"]: check["state"] for check in summary["checks"]}


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
            "-subj", "/CN=localhost",
            "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", cert,
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return cert, key


async def test_a_plain_engine_is_judged_by_its_description_alone(settings: Settings, tmp_path: Path) -> None:
    engine = find_engine("plain", None, (None, None, settings.postgres_url))
    async with plain_engine(str(settings.postgres_url)) as port:
        summary = await judge(small_spike(), tmp_path / "run", engine, f"http://127.0.0.1:{port}")
    assert summary["verdict"] == "pass", summary["verdict_in_words"]
    assert (summary["stock"]["sold"], summary["stock"]["remaining"], summary["outcomes"]["accepted"]) == (
        60,
        0,
        60,
    )
    found = states(summary)
    held = {"no oversell", "accepted is settled", "no phantom orders", "units are conserved"}
    assert {found[name] for name in held} == {"held"}
    assert found["order ids are unique"] == found["no dead letters"] == "not exercised"


async def test_an_oversell_of_a_plain_engine_is_found(settings: Settings, tmp_path: Path) -> None:
    engine = find_engine("plain", None, (None, None, settings.postgres_url))
    async with plain_engine(str(settings.postgres_url), "oversell") as port:
        summary = await judge(small_spike(), tmp_path / "run", engine, f"http://127.0.0.1:{port}")
    assert summary["verdict"] == "fail"
    assert summary["stock"]["oversold"] == 5
    assert states(summary)["no oversell"] == "broken"


async def test_each_buyer_sends_the_token_of_its_own(settings: Settings, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.csv"
    tokens.write_text("".join(f"{user},secret-{user * 7919}\n" for user in range(400, 0, -1)))
    text = (PLAIN.parents[2] / "target/foreign/library/plain.toml").read_text()
    text = text.replace("user-{user_id}", "{token}").replace("{ status = 200", "{ status = 201")
    text = text.replace('# order_id = "data.orderId" ', 'order_id = "order"\nnumbered = true ')
    own = tmp_path / "own.toml"
    own.write_text(
        f"""tokens = "tokens.csv"
{text}
[order]
path = "/orders/{{order_id}}"
headers = {{ Authorization = "Bearer {{token}}" }}
status = "state"
words = {{ PAID = "CONFIRMED" }}
"""
    )
    engine = find_engine(str(own), None, (None, None, settings.postgres_url))
    reads = {"stock_share": 0.0, "order_share": 1.0}
    scenario = small_spike(**{"population.users": 400, "population.reads": reads})
    async with plain_engine(str(settings.postgres_url), "tokens", str(tokens)) as port:
        summary = await judge(scenario, tmp_path / "run", engine, f"http://127.0.0.1:{port}")
        asked = await judge(
            scenario, tmp_path / "asked", find_engine(str(own), "http"), f"http://127.0.0.1:{port}"
        )
    assert summary["verdict"] == "pass", summary["verdict_in_words"]
    assert (summary["outcomes"]["accepted"], summary["outcomes"]["rejected"]) == (60, 0)
    assert summary["reads"]["order"]["final"] == 60
    found = states(asked)
    assert (found["accepted is settled"], found["no oversell"]) == ("held", "held")
    record = [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert not [file for file in record if b"secret-" in file.read_bytes()]
    with pytest.raises(EngineError, match=r"none for user 401 of 1,000; --set population.users=400 takes"):
        engine.fit(small_spike(**{"population.users": 1_000}), print)


def test_a_topology_is_refused_for_another_engine() -> None:
    with pytest.raises(EngineError, match="topology: is for Flashgrid"):
        find_engine("textbook", "http").fit(small_spike(**{"topology.front_doors": 2}), print)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("first\nsecond\n", {1: "first", 2: "second"}),
        ("user,token\n7,seven\n3,three\n", {7: "seven", 3: "three"}),
        ('\ufeff"2","b=="\r\n"1","a.b"\r\n', {2: "b==", 1: "a.b"}),
        ("user;token\n7;seven\n3;three\n", {7: "seven", 3: "three"}),
        ("Token\nfirst\nsecond\n", {1: "first", 2: "second"}),
    ],
)
def test_tokens_are_read_as_people_write_them(text: str, tokens: dict[int, str], tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(text, newline="")
    assert read_tokens(file) == tokens


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("a\n\nb\n", "line 2: is no token; there must be a token on each line, or rows of user,token"),
        ("1,a\nb\n", "line 2: is no token"),
        ("1,a b\n", "line 1: is no token"),
        ("1,a;b\n", "line 1: is no token"),
        ("1,a\n0,b\n", "line 2: is no token"),
        ("1,a\n1,b\n", "line 2: user 1 has a token already"),
        ("a\nb\na\n", "line 3: is the token of line 1"),
    ],
)
def test_a_file_of_tokens_that_is_wrong_names_the_line_and_no_token(
    text: str, said: str, tmp_path: Path
) -> None:
    file = tmp_path / "tokens"
    file.write_text(text)
    with pytest.raises(EngineError, match=said):
        read_tokens(file)


async def test_a_plain_engine_is_judged_over_https(
    settings: Settings, tmp_path: Path, certificate: tuple[Path, Path]
) -> None:
    cert, key = certificate
    own = tmp_path / "own.toml"
    own.write_text('ca = "cert.pem"\n' + (PLAIN.parents[2] / "target/foreign/library/plain.toml").read_text())
    engine = find_engine(str(own), None, (None, None, settings.postgres_url))
    async with plain_engine(str(settings.postgres_url), "https", str(cert), str(key)) as port:
        url = f"https://localhost:{port}"
        summary = await judge(small_spike(), tmp_path / "run", engine, url)
        stranger = find_engine("plain", None, (None, None, settings.postgres_url))
        with pytest.raises(EngineError, match="certificate"):
            await judge(small_spike(), tmp_path / "other", stranger, url)
    assert summary["verdict"] == "pass", summary["verdict_in_words"]
    assert summary["outcomes"]["accepted"] == 60


@pytest.fixture
def services(settings: Settings) -> Services:
    return Services(
        redis_url=settings.redis_url or "",
        postgres_url=settings.postgres_url or "",
        amqp_url=settings.amqp_url,
    )


async def test_over_http_alone_what_can_be_judged_is_judged(services: Services, tmp_path: Path) -> None:
    scenario = small_spike()
    async with start_engine(services, {"dev": True}, tmp_path / "log") as process:
        summary = await judge(scenario, tmp_path / "run", find_engine(None, "http"), process.url)
    assert summary["verdict"] == "unknown"
    found = states(summary)
    assert [name for name, state in found.items() if state == "broken"] == []
    assert {found[name] for name in ("accepted is settled", "units are conserved", "no oversell")} == {"held"}
    blind = {"no phantom orders", "nothing is stranded", "no dead letters"}
    assert {name for name, state in found.items() if state == "not judged"} == blind


async def test_the_textbook_is_judged_by_its_own_tables(services: Services, tmp_path: Path) -> None:
    engine = find_engine("textbook", None)
    await run(small_spike(), tmp_path / "run", lambda _: None, services=services, engine=engine)
    summary = finish_run(tmp_path / "run")
    assert summary["verdict"] == "pass", summary["verdict_in_words"]
    assert summary["fulfilment"]["confirmed"] == 60
    assert states(summary)["units are conserved"] == "held"


def describe(tmp_path: Path, changes: dict[str, str]) -> str:
    text = (PLAIN.parents[2] / "target/foreign/library/plain.toml").read_text()
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    file = tmp_path / "shop.toml"
    file.write_text(text)
    return str(file)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('path = "/buy"', 'path = "buy"', "buy.path: "),
        (
            "{product_id}}'",
            "{product}}'",
            "buy.body: there is no {product} (did you mean 'product_id'?); there are: key, product_id, token,"
            " user_id; for braces of its own write { product }",
        ),
        (
            "user-{user_id}",
            "user-{userId}",
            "buy.headers.Authorization: there is no {userId} (did you mean 'user_id'?); there are",
        ),
        ("user-{user_id}", "user-{{user_id}}", "buy.headers.Authorization: {{user_id: a value is written"),
        ("user-{user_id}", "user\\r\\n", "buy.headers.Authorization: a header field has no line ends"),
        (
            "Content-Type = ",
            "Content-Length = '9', Content-Type = ",
            "buy.headers.Content-Length: is said by",
        ),
        ("Content-Type = ", "X-Type = ", "buy.headers: a body needs its Content-Type"),
        ('path = "/buy"', 'path = "/buy/{key}"', "buy.path: {key} may be missing, and a path can't leave it"),
        ('item = "{product_id}", ', "", "init: must take {product_id}, as buy does"),
        (', amount = "{stock}"', "", "init: must take {stock}"),
        ("{product_id}}'", "{product_id}'", "buy.body: is no JSON with a value in each place: Input data"),
        (
            "body = '{",
            """body = '{"query":"mutation { buy(key: \\"{key}\\") { id } }",""",
            "buy.body: {key} stands in quotes within a text: give it as a member of its own, in GraphQL",
        ),
        ("[sql]", '[order]\npath = "/orders"\nstatus = "a"\n[sql]', "order: must take {order_id}"),
        (
            "[sql]",
            '[order]\npath = "/o/{order_id}"\nstatus = "a"\nwords = { PAID = "CONFIRMD" }\n[sql]',
            "order.words: PAID = 'CONFIRMD': there is no such status (did you mean 'CONFIRMED'?); there are:",
        ),
        (
            "[sql]",
            '[[processes]]\nname = "front-door"\ncommand = "run {redisUrl}"\n[sql]',
            "processes.0.command: there is no {redisUrl} (did you mean 'redis_url'?); there are: port",
        ),
        *(
            (
                "answers = [",
                f'order_id = "{place}"\nanswers = [',
                f"buy.order_id: '{place}' is no place of an",
            )
            for place in (
                "$.data.id",
                "/data/id",
                "data.orders[0].id",
                "",
                "data..id",
                "$",
                "my id",
                "[?(x)]",
            )
        ),
        *(
            (
                "answers = [",
                f"order_id = '''{place}'''\nanswers = [",
                f"buy.order_id: {place!r} is no place of an answer: write {how}",
            )
            for place, how in {
                'data["id"]': "data.id",
                "data['my.id'].x": 'data."my.id".x',
                "$": ".",
                "data[*].id": "data.0.id",
                "data.*.id": "data.0.id",
                "$.data[2]['id']": "data.2.id",
                "data/id": "data.id",
                "#/data/0/id": "data.0.id",
                ".data[].id": "data.0.id",
                "data->'id'": "data.id",
                "ns:id": '"ns:id"',
                "headers:Location": "header:Location",
                'Headers["X-Id"]': "header:X-Id",
                "header.Location": 'header:Location, or "header".Location for a part of the body',
            }.items()
        ),
        (
            "user-{user_id}",
            "user-{sale_id}",
            "buy.headers.Authorization: there is no {sale_id} to send: a sale's",
        ),
        (
            "user-{user_id}",
            "user-{order_id}",
            "buy.headers.Authorization: there is no {order_id} here, but in [order]; ",
        ),
        (
            "[sql]",
            '[stock]\npath = "/s/{product_id}"\nremaining = "a"\nquery = { t = "{token}" }\n[sql]',
            "stock.query.t: there is no {token} here, but in [buy] and [order]: nobody in particular",
        ),
        (
            'item = "{product_id}"',
            '"{product_id}" = "x"',
            "init.query: {product_id} stands in a name, and must",
        ),
        (
            "Content-Type = ",
            "content-type = 'a/b', Content-Type = ",
            "buy.headers: content-type and Content-Type are",
        ),
        *(
            (
                'path = "/init"',
                f'path = "/init"\nmethod = "{method}"',
                "init.method: must be one of DELETE, GET, ",
            )
            for method in ("CONNECT", "GET\\n", "get", "HEAD")
        ),
        *(
            (
                "[sql]",
                f'[[processes]]\nname = "front-door"\ncommand = "{command}"\n[sql]',
                f"processes.0.command: {said}",
            )
            for command, said in {
                "  ": "names no program",
                "''": "names no program",
                "run 'it": "is no command: no closing quotation",
                "run {port:>9}": "a value is written {port}",
                "run {port!r}": "a value is written {port}",
                "run {}": "there is no {}; there are: port",
            }.items()
        ),
        ("[init]", 'reset = " "\n[init]', "reset: names no program"),
        (
            "[init]",
            "odd = " + "[" * 3_000 + "\n[init]",
            "is not TOML: a number has thousands of digits, or more",
        ),
        (
            "[init]",
            "odd = " + "[" * 40 + "]" * 40 + "\n[init]",
            "is not TOML: a number has thousands of digits, or",
        ),
        ("[init]", f"odd = {'9' * 5_000}\n[init]", "is not TOML: a number has thousands of digits, or more"),
        ("[init]", 'reset = "a\\u0000b"\n[init]', "is not TOML: a text has a NUL character"),
        (
            "answers = [",
            'order_id = "."\nnumbered = true\nanswers = [',
            "buy.numbered: a whole body is a text",
        ),
        (
            "user-{user_id}",
            "{token}",
            "tokens: a file of tokens and the {token} of a request need each other",
        ),
        (
            'outcome = "SOLD_OUT"',
            'outcome = "SOLD"',
            "buy.answers.1.outcome: must be one of ACCEPTED, ",
        ),
        ('witness = "sql"', 'witness = "psql"', "witness: must be one of flashgrid, http, sql, got 'psql'"),
        ("[sql.remaining]", "[sql.remaining]\nget = true", "sql.remaining: needs one of sql, redis and get"),
        ('text = "A', "text = A", "is not TOML: Invalid value (at line 10, column 8)"),
        ("answers = [", "replies = [", "buy.replies: there is no such key"),
        (
            "answers = [",
            'order_id = "header:X-Id"\nnumbered = true\nanswers = [',
            "buy.numbered: a header field is a text",
        ),
        (
            "answers = [",
            'words = ["header:X-Why"]\nanswers = [',
            "buy.words: header:X-Why: a word must stand",
        ),
        *(
            ("answers = [", f'order_id = "{place}"\nanswers = [', f"buy.order_id: '{place}' is no place")
            for place in ("header:", "Header:X-Order", "header: X-Order", "header :X-Order")
        ),
    ],
)
def test_a_bad_description_is_told_with_its_line(tmp_path: Path, old: str, new: str, said: str) -> None:
    file = describe(tmp_path, {old: new})
    with pytest.raises(EngineError) as error:
        load_description(file)
    [first, *more] = str(error.value).splitlines()
    assert re.match(rf"{re.escape(file)}(:\d+)?: {re.escape(said)}", first)
    assert [line.partition(": ")[2] for line in more] == (
        ["buy.answers: is missing"] if "replies" in new else []
    )


def test_all_errors_of_a_description_are_told_at_once(tmp_path: Path) -> None:
    changes = {
        'witness = "sql"': 'witness = "psql"',
        'path = "/buy"': 'path = "buy"',
        "status = 429": "status = 9",
    }
    with pytest.raises(EngineError) as error:
        load_description(describe(tmp_path, changes))
    assert [line.partition("shop.toml")[2] for line in str(error.value).splitlines()] == [
        ":11: witness: must be one of flashgrid, http, sql, got 'psql'",
        ":23: buy.path: expected `str` matching regex '^/', got 'buy'",
        ":31: buy.answers.1.status: expected `int` >= 200, got 9",
    ]


def test_each_line_of_the_example_may_be_taken_out_of_its_comment() -> None:
    text = (PLAIN.parents[2] / "target/foreign/library/plain.toml").read_text()
    whole, keys = re.subn(r"^# (?=\w+ = |\[(stock|order)\])", "", text, flags=re.M)
    assert keys >= 15
    described = msgspec.convert(tomllib.loads(whole), Description)
    assert described.order
    assert described.order.words == {"PAID": "CONFIRMED"}


async def test_a_statement_without_a_column_is_told_before_the_load(
    settings: Settings, tmp_path: Path
) -> None:
    file = describe(tmp_path, {"buyer AS user_id, ": ""})
    engine = find_engine(file, None, (None, None, settings.postgres_url))
    async with plain_engine(str(settings.postgres_url)) as port:
        with pytest.raises(EngineError, match=r"sql\.orders: must give user_id, gives order_id, product_id"):
            await judge(small_spike(), tmp_path / "run", engine, f"http://127.0.0.1:{port}")


async def test_a_term_that_the_contract_can_t_say_is_told(tmp_path: Path) -> None:
    engine = find_engine("plain", None, (None, None, "postgresql://127.0.0.1:9"))
    with pytest.raises(EngineError, match=r"sales.0.limit: this engine's init takes no \{limit\}"):
        await run(small_spike(**{"sales.0.limit": 2}), tmp_path / "run", lambda _: None, engine=engine)


async def test_a_reset_that_fails_is_told(settings: Settings, tmp_path: Path) -> None:
    file = describe(
        tmp_path, {'witness = "sql"': 'witness = "sql"\nreset = "sh -c \'echo no such database; exit 3\'"'}
    )
    engine = find_engine(file, None, (None, None, settings.postgres_url))
    with pytest.raises(EngineError, match="ended with code 3: no such database"):
        await judge(small_spike(), tmp_path / "run", engine, "http://127.0.0.1:9")


@pytest.mark.slow
async def test_a_command_that_hangs_is_killed_with_what_it_started_and_one_behind_it_is_not_waited_for(
    tmp_path: Path,
) -> None:
    mark = tmp_path / "mark"
    hanging = f"sh -c 'sleep 300 & echo $! > {mark}; wait'"
    waiting = asyncio.create_task(try_command(hanging, 300))
    await holds(lambda: mark.exists() and mark.read_text().endswith("\n"))
    child = int(mark.read_text())
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await holds(lambda: not is_running(child))
    assert await try_command("sleep 300", 0.1) == "has not ended after 0.1 s"
    try:
        assert await try_command(hanging.replace("; wait", ""), 30) is None
        assert is_running(int(mark.read_text()))
    finally:
        os.kill(int(mark.read_text()), signal.SIGKILL)
    assert await try_command("  ", 1) is not None


def is_running(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


async def holds(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


SHELL = """sh -c '{python} -m http.server --bind 127.0.0.1 {port} & echo $! >> MARK; wait'"""


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1, None])
async def test_what_a_shell_starts_ends_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: int | None
) -> None:
    monkeypatch.setattr(programs, "STOP_S", 0.5)
    mark, command = tmp_path / "mark", SHELL
    if not killed:
        # Its child pays no heed to a signal that asks it to end.
        command = command.replace(
            "sh -c '", "sh -c 'trap : TERM; (trap : TERM; while :; do sleep 9; done) & "
        )
    program = Program(name="front-door", command=command.replace("MARK", str(mark)))
    running = Programs([program], Services(redis_url="", postgres_url=""), tmp_path / "log")
    try:
        await running.start()
        first = [member.pid for member in running.find_stage("front-door")]
        assert int(mark.read_text()) in first[1:]
        if killed is not None:
            for pid in first[:1] if killed == 0 else first:
                os.kill(pid, signal.SIGKILL)
            await holds(lambda: not any(map(is_running, first)))
            await holds(lambda: len(mark.read_text().split()) == 2)
        last = [member.pid for member in running.find_stage("front-door")]
    finally:
        await running.stop()
    started = {*first, *last, *map(int, mark.read_text().split())}
    await holds(lambda: not any(map(is_running, started)))


async def test_faults_of_one_s_own_are_commands(settings: Settings, tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    fault = {"kind": "command", "on": "shop", "at_s": 5, "seconds": 5}
    fault |= {word: f"sh -c 'echo {word} >> {diary}'" for word in ("begin", "end")}
    engine = find_engine("plain", None, (None, None, settings.postgres_url))
    async with plain_engine(str(settings.postgres_url)) as port:
        summary = await judge(
            small_spike(faults=[fault]), tmp_path / "run", engine, f"http://127.0.0.1:{port}"
        )
    assert diary.read_text() == "begin\nend\n"
    assert [(each["kind"], each["on"]) for each in summary["faults"]] == [("command", "shop")]


@pytest.mark.parametrize("failing", ["begin", "end"])
async def test_a_fault_whose_command_fails_is_named_and_the_run_judged(
    settings: Settings, tmp_path: Path, failing: str
) -> None:
    fault = {"kind": "command", "on": "shop", "at_s": 1, "seconds": 1, "begin": "true", "end": "true"}
    engine = find_engine("plain", None, (None, None, settings.postgres_url))
    async with plain_engine(str(settings.postgres_url)) as port:
        scenario = small_spike(faults=[fault | {failing: "false"}])
        summary = await judge(scenario, tmp_path / "run", engine, f"http://127.0.0.1:{port}")
    said = f"command shop: {failing}: false: ended with code 1: it said nothing"
    assert [each["failed"] for each in summary["faults"]] == [said]
    assert said in (tmp_path / "run/report.html").read_text()
    assert summary["verdict"] == "unknown"
    assert [check["name"] for check in summary["checks"] if check["state"] == "not judged"] == [
        "recovers from faults"
    ]


async def test_a_run_that_comes_to_nothing_leaves_no_folder(settings: Settings, tmp_path: Path) -> None:
    engine = find_engine("plain", None, (None, None, settings.postgres_url))
    with pytest.raises(EngineError, match="can't be reached"):
        await judge(small_spike(), tmp_path / "run", engine, "http://127.0.0.1:9")
    assert not (tmp_path / "run").exists()


async def test_a_description_that_looks_for_order_ids_elsewhere_is_told(
    settings: Settings, tmp_path: Path
) -> None:
    engine = find_engine(
        describe(tmp_path, {"# order_id =": "order_id ="}), None, (None, None, settings.postgres_url)
    )
    async with plain_engine(str(settings.postgres_url)) as port:
        summary = await judge(small_spike(), tmp_path / "run", engine, f"http://127.0.0.1:{port}")
    [said] = summary["misfits"]
    assert "what an order is called at data.orderId, a text, as the contract says" in said
    assert summary["verdict"] == "unknown"


async def test_a_program_that_dies_is_started_again(services: Services, tmp_path: Path) -> None:
    program = find_engine("textbook", None).programs[0]
    running = Programs([program], services, tmp_path / "log")
    try:
        await running.start()
        [first] = running.find_stage("front-door")
        first_pid = first.pid
        os.kill(first_pid, signal.SIGKILL)
        async with asyncio.timeout(30):
            while not (now := running.find_stage("front-door")) or now[0].pid == first_pid:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    finally:
        await running.stop()
    assert running.find_stage("front-door") == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--witness=sql"], "the witness sql needs the tables of an engine: give --engine FILE with [sql]"),
        (["--engine=nosuch"], "no engine 'nosuch'; there are: plain, textbook, or a FILE.toml"),
        (["--engine=textbook", "--witness=flashgrid"], "textbook: is not Flashgrid"),
        (["--engine=plain", "--target=http://127.0.0.1:9"], "needs sql.postgres_url, or --postgres-url"),
        (["--set=target.engine=nosuch"], "no engine 'nosuch'"),
        (["--set=target.witness=sql"], "the witness sql needs the tables of an engine"),
    ],
)
def test_the_command_line_and_a_scenario_name_the_engine(arguments: list[str], said: str) -> None:
    result = flashsim("run", "spike", "--rate=10", "--duration=1", *arguments)
    assert result.exit_code == 2
    assert said in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_what_the_contract_lacks_is_left_out_and_told() -> None:
    told: list[str] = []
    reads = {"stock_share": 0.1, "order_share": 0.1}
    scenario = small_spike(**{"population.keyed_share": 0.5, "population.reads": reads})
    fitted = find_engine("plain", "http").fit(scenario, told.append)
    assert fitted.population.keyed_share == 0
    assert fitted.population.reads
    assert (fitted.population.reads.stock_share, fitted.population.reads.order_share) == (0, 0)
    assert len(told) == 3
    assert find_engine(None, "http").fit(scenario, told.append) is scenario

"""Loads `gpt4roi serve` on the loopback interface until it refuses, and looks at how it behaves.

    python3 reference/bench/serving_load.py target/release/gpt4roi [--seconds 30] [--json FILE]

Needs nothing but Python 3.11 and the program. It starts the server with the embedded model, measures how many streamed
answers a second clients get that ask one thing after the other (the capacity), then offers 1x and 10x of that without
waiting for answers, cancels questions at every stage, holds connections that never get anywhere, and stops the server
with streams running. Everything is bounded in number and time; it takes about 4 minutes and prints a table in Markdown.

It fails if anything but 200 and 429 comes back, a 429 has no Retry-After, an answer breaks off, a place is not given
back, or the server does not end with 0. Clients and server share the machine's cores, so that the clients take some of
what the server could do; times are counted from when a question was due, however late the client was.
"""

import argparse
import asyncio
import base64
import contextlib
import json
import os
import random
import re
import resource
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

PICTURES = 8
CLOSED_CLIENTS = 16
"""As many as the server answers at a time."""
MOST_OPEN = 900
"""Connections that the open loop holds at most; the server takes 1024."""
CANCELS = 60
PATIENCE = 60
"""Seconds for any one answer; whoever needs longer has hung."""
FIRST_TEXT = re.compile(rb'"content":"[^"]|^\{"', re.MULTILINE)
"""A piece of an answer that has text in it, or a line of described regions."""


class Misbehaved(Exception):
    """The server did what it must not do."""


def main():
    arguments = parsed_arguments()
    random.seed(7)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(files, 4096), resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    try:
        report = asyncio.run(measured(arguments))
    except Misbehaved as misbehaved:
        sys.exit(f"the server misbehaved: {misbehaved}")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(report, indent=2) + "\n")
    print(table(report))


def parsed_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", help="the program gpt4roi")
    parser.add_argument("--seconds", type=float, default=30, help="how long each load is offered (default: 30)")
    parser.add_argument("--json", help="also write all figures to this file")
    return parser.parse_args()


async def measured(arguments):
    with tempfile.TemporaryDirectory() as folder, serving(arguments.program) as server:
        await server.until_ready()
        questions = Questions(arguments.program, Path(folder))
        report = {"idle": {"rss_mib": server.rss(), "descriptors": server.descriptors()}}
        report["alone"] = await closed_loop(server, questions, clients=1, seconds=max(1, arguments.seconds / 6))
        report["capacity"] = await closed_loop(server, questions, CLOSED_CLIENTS, max(1, arguments.seconds / 2))
        # Memory that grows again when the same is done again is a leak; what is kept once is not. With pictures
        # that were uploaded before, all that a refusal costs is a short text.
        handles = await questions.by_handle(server)
        loads = ("1x", 1, questions.chats), ("10x", 10, questions.chats), ("10x again", 10, questions.chats)
        for name, times, asked in (*loads, ("10x by handle", 10, handles)):
            rate = times * report["capacity"]["answers_per_second"]
            report[name] = await open_loop(server, asked, rate, arguments.seconds)
            await server.until_idle()
        report["cancel"] = {
            "waiting": await cancelled_while_waiting(server, questions),
            "before the first text": await cancelled_before_text(server, questions),
            "while being written": await cancelled_while_written(server, questions),
        }
        report["held"] = await held_connections(server, questions)
        report["after"] = {
            "rss_mib": server.rss(),
            "caches_mib": await server.caches(),
            "descriptors": server.descriptors(),
        }
        report["stop"] = await stopped(server, questions)
        return report


# The server


@contextlib.contextmanager
def serving(program, *options):
    command = [program, "serve", "--port", "0", "--no-page", *options]
    with tempfile.NamedTemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield Server(process, listening_port(Path(log.name)))
        finally:
            process.kill()
            process.wait()


def listening_port(log):
    deadline = time.perf_counter() + PATIENCE
    while time.perf_counter() < deadline:
        if port := re.search(r"listening on http://127\.0\.0\.1:(\d+)", log.read_text()):
            return int(port[1])
        time.sleep(0.01)
    raise Misbehaved("it did not say where it listens")


class Server:
    def __init__(self, process, port):
        self.process, self.port = process, port

    async def until_ready(self):
        await self.until(lambda: self.status("/readyz"), 200, "it did not become ready")

    async def until_idle(self):
        await self.until(self.places, (0, 0), "a place was not given back")

    async def until(self, state, wanted, otherwise):
        deadline = time.perf_counter() + PATIENCE
        while await state() != wanted:
            if time.perf_counter() > deadline:
                raise Misbehaved(f"{otherwise} within {PATIENCE} s")
            await asyncio.sleep(0.002)

    async def places(self):
        """How many requests wait and are being answered."""
        text = (await self.get("/metrics")).body.decode()
        return tuple(metric(text, f"num_requests_{name}") for name in ("waiting", "running"))

    async def cancelled(self):
        return metric((await self.get("/metrics")).body.decode(), "requests_cancelled_total")

    async def caches(self):
        text = (await self.get("/metrics")).body.decode()
        return sum(metric(text, f"{name}_cache_bytes") for name in ("image", "prefix")) / (1 << 20)

    async def status(self, path):
        return (await self.get(path)).status

    async def get(self, path):
        return await self.send(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())

    async def send(self, request, due=None):
        asked = await Asked.begin(self, request, due)
        try:
            async with asyncio.timeout(PATIENCE):
                return await asked.answer()
        except TimeoutError:
            raise Misbehaved(f"an answer did not end within {PATIENCE} s") from None
        finally:
            asked.close()

    def rss(self):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024

    def cpu(self):
        """Seconds of processor time so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def descriptors(self):
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))


def metric(text, name):
    return int(re.search(rf"^gpt4roi_{name} (\d+)", text, re.MULTILINE)[1])


@dataclass
class Answer:
    status: int
    head: bytes
    body: bytes
    first_text: float | None
    """Seconds until the first text was there."""
    seconds: float


class Asked:
    """A request that was sent on a connection of its own."""

    def __init__(self, reader, writer, due):
        self.reader, self.writer, self.due = reader, writer, due
        self.received, self.first_text = b"", None

    @classmethod
    async def begin(cls, server, request, due=None, buffer=None):
        due = due or time.perf_counter()
        connection = socket.socket()
        connection.setblocking(False)
        if buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", server.port))
        reader, writer = await asyncio.open_connection(sock=connection, limit=buffer or 1 << 16)
        writer.write(request)
        return cls(reader, writer, due)

    async def receive(self):
        """Waits for the next bytes; whether there were any."""
        with contextlib.suppress(ConnectionResetError):
            piece = await self.reader.read(1 << 16)
            self.received += piece
            if self.first_text is None and FIRST_TEXT.search(self.received):
                self.first_text = time.perf_counter() - self.due
            return bool(piece)
        return False

    async def until_head(self):
        while b"\r\n\r\n" not in self.received and await self.receive():
            pass
        return self

    async def until_text(self):
        while self.first_text is None and await self.receive():
            pass
        return self

    async def answer(self):
        while await self.receive():
            pass
        head, _, body = self.received.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 "):
            raise Misbehaved("a connection was closed without an answer")
        return Answer(int(head.split()[1]), head.lower(), body, self.first_text, time.perf_counter() - self.due)

    def close(self):
        self.writer.transport.abort()


# What is asked


class Questions:
    """Questions about scenes that the program draws, as whole HTTP requests."""

    def __init__(self, program, folder):
        command = [program, "scenes", "--seed", "77", "--count", str(PICTURES), "--out", folder]
        subprocess.run(command, check=True, capture_output=True)
        files = sorted((folder / "images").iterdir())
        self.pictures = [file.read_bytes() for file in files]
        lines = (folder / "questions.jsonl").read_text().splitlines()
        self.lines = [json.loads(line) for line in lines]
        self.chats = self.about([data_url(picture) for picture in self.pictures])
        self.unseen = 0

    def about(self, urls):
        """All questions, about the pictures at these addresses."""
        return [self.ask(line, urls[line["image_id"] - 1]) for line in self.lines]

    def ask(self, line, url):
        regions = [{"id": f"region{region['id']}", "box": region["bbox"]} for region in line["regions"]]
        return chat(url, line["rounds"][0]["question"], regions)

    async def by_handle(self, server):
        """All questions, about pictures that are uploaded now."""
        uploads = [await server.send(post("/v1/images", {"image": data_url(picture)})) for picture in self.pictures]
        return self.about([json.loads(upload.body)["id"] for upload in uploads])

    def any(self):
        return random.choice(self.chats)

    def about_unseen(self):
        """A question about a picture that the server has never seen: its pixels are noise."""
        self.unseen += 1
        pixels = random.Random(self.unseen).randbytes(3 * 224 * 224)
        return chat(data_url(png(pixels, 224, 224)), "What is <region1>?", [{"id": "region1", "box": [20, 30, 120, 130]}])

    def long(self, regions):
        """Hundreds of descriptions, the longest work that the embedded model can be given."""
        boxes = [{"box": [x % 100, x // 10, x % 100 + 90, x // 10 + 80]} for x in range(regions)]
        image = data_url(self.pictures[0])
        return post("/v1/regions/describe", {"image": image, "regions": boxes, "detail": "full", "stream": True})


def chat(url, question, regions):
    image = {"type": "image_url", "image_url": {"url": url}, "regions": regions}
    content = [image, {"type": "text", "text": question}]
    return post("/v1/chat/completions", {"stream": True, "messages": [{"role": "user", "content": content}]})


def data_url(picture):
    return "data:image/png;base64," + base64.b64encode(picture).decode()


def png(pixels, width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + pixels[3 * width * y:3 * width * (y + 1)] for y in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")


def post(path, body):
    body = json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Connection: close", "Content-Type: application/json"]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


# Loads


async def closed_loop(server, questions, clients, seconds):
    """Clients that ask one thing after the other; answers a second as the median of the seconds."""
    began, answers = time.perf_counter(), []

    async def client():
        while time.perf_counter() < began + seconds:
            answer = await server.send(questions.any())
            answers.append((time.perf_counter() - began, answer))

    await asyncio.gather(*(client() for _ in range(clients)))
    each_second = Counter(int(at) for at, _ in answers)
    return {
        "answers_per_second": statistics.median(each_second[second] for second in range(int(seconds))),
        **outcomes([answer for _, answer in answers]),
    }


async def open_loop(server, chats, rate, seconds):
    """Questions at random times, so many a second on average, whether or not the earlier ones are answered."""
    answers, late, unsent, running = [], [], 0, set()

    async def ask(due):
        late.append(time.perf_counter() - due)
        answers.append(await server.send(random.choice(chats), due))

    watched = Watched(server)
    async with watched:
        began = due = time.perf_counter()
        while due < began + seconds:
            await asyncio.sleep(max(0, due - time.perf_counter()))
            if len(running) < MOST_OPEN:
                task = asyncio.create_task(ask(due))
                running.add(task)
                task.add_done_callback(running.discard)
            else:
                unsent += 1
            due += random.expovariate(rate)
        sent_for = time.perf_counter() - began
        await asyncio.gather(*running)
    return {
        "due_per_second": (len(answers) + unsent) / sent_for,
        "not_sent": unsent,
        "client_late_ms": percentiles(late),
        "accepted_per_second": sum(answer.status == 200 for answer in answers) / sent_for,
        **outcomes(answers),
        **watched.figures(),
    }


def outcomes(answers):
    for answer in answers:
        check(answer)
    accepted = [answer for answer in answers if answer.status == 200]
    return {
        "statuses": dict(Counter(answer.status for answer in answers)),
        "first_text_ms": percentiles([answer.first_text for answer in accepted]),
        "answer_ms": percentiles([answer.seconds for answer in accepted]),
        "refusal_ms": percentiles([answer.seconds for answer in answers if answer.status == 429]),
    }


def check(answer):
    if answer.status not in (200, 429):
        raise Misbehaved(f"status {answer.status}: {answer.body[:300]}")
    if answer.status == 429 and b"\r\nretry-after: " not in answer.head:
        raise Misbehaved("429 without Retry-After")
    if answer.status == 200 and (b"data: [DONE]" not in answer.body or answer.first_text is None):
        raise Misbehaved(f"an answer broke off: {answer.body[-300:]}")


class Watched:
    """Samples the server's memory and descriptors four times a second."""

    def __init__(self, server):
        self.server, self.samples = server, []

    async def __aenter__(self):
        self.began = time.perf_counter(), self.server.cpu(), time.process_time()
        self.task = asyncio.create_task(self.sample())

    async def __aexit__(self, *_):
        self.task.cancel()
        ended = time.perf_counter(), self.server.cpu(), time.process_time()
        took, server, clients = (end - begin for begin, end in zip(self.began, ended))
        self.cores = {"server": server / took, "clients": clients / took}

    async def sample(self):
        while True:
            self.samples.append((time.perf_counter(), self.server.rss(), self.server.descriptors()))
            await asyncio.sleep(0.25)

    def figures(self):
        times, rss, descriptors = zip(*self.samples)
        half = len(rss) // 2
        slope, _ = statistics.linear_regression(times[half:], rss[half:])
        return {
            "cores": self.cores,
            "rss_mib": {"start": rss[0], "max": max(rss), "end": rss[-1], "slope_per_minute": 60 * slope},
            "descriptors": {"start": descriptors[0], "max": max(descriptors), "end": descriptors[-1]},
        }


# Clients that go away


async def cancelled_while_waiting(server, questions):
    """Every place is taken by long work; a question waits behind it and is given up."""
    works = [await Asked.begin(server, questions.long(1000)) for _ in range(CLOSED_CLIENTS)]
    readers = [asyncio.create_task(work.answer()) for work in works]
    await server.until(server.places, (0, CLOSED_CLIENTS), "long work was not begun")

    async def one():
        asked = await (await Asked.begin(server, questions.any())).until_head()
        await server.until(server.places, (1, CLOSED_CLIENTS), "a question did not wait")
        return asked

    figures = await cancelled(server, one, (0, CLOSED_CLIENTS))
    for work, reader in zip(works, readers):
        work.close()
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    await server.until_idle()
    return figures


async def cancelled_before_text(server, questions):
    """Given up at a random moment while its picture, an unseen one, is looked at and its prompt read."""
    usual = statistics.median([(await server.send(questions.about_unseen())).first_text for _ in range(7)])

    async def one():
        asked = await (await Asked.begin(server, questions.about_unseen())).until_head()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asked.until_text(), usual * random.random() * 0.8)
        return asked

    return await cancelled(server, one, (0, 0))


async def cancelled_while_written(server, questions):
    """Given up once the first of a thousand descriptions is there, so that many more are being written."""

    async def one():
        return await (await Asked.begin(server, questions.long(1000))).until_text()

    return await cancelled(server, one, (0, 0))


async def cancelled(server, begin, free):
    """How long it takes from the end of a connection until the metrics show its place free."""
    before, seconds = await server.cancelled(), []
    for _ in range(CANCELS):
        asked = await begin()
        gone = time.perf_counter()
        asked.close()
        await server.until(server.places, free, "a cancelled question kept its place")
        seconds.append(time.perf_counter() - gone)
    counted = await server.cancelled() - before
    return {"clients": CANCELS, "counted_as_cancelled": counted, "free_after_ms": percentiles(seconds)}


# Clients that get nowhere


async def held_connections(server, questions, half_open=500, unread=50, probes=200):
    """How `/livez` answers on a fresh connection while others hold theirs."""
    figures = {"free_ms": await probed(server, probes)}
    began = b"POST /v1/chat/completions HTTP/1.1\r\nHost: loc"
    held = [await Asked.begin(server, began) for _ in range(half_open)]
    figures["half_open_ms"] = await probed(server, probes)
    # What asyncio reads ahead is as little as the socket's buffer, and then nothing is read any more.
    silent = [await Asked.begin(server, questions.long(1000), buffer=4096) for _ in range(unread)]
    for asked in silent:
        await asked.writer.drain()
        asked.writer.transport.pause_reading()
    figures["half_open_and_unread_ms"] = await probed(server, probes)
    waiting, running = await server.places()
    figures["connections"] = server.descriptors()
    figures["requests_held"] = waiting + running
    await asyncio.sleep(max(0, 12 - (time.perf_counter() - held[0].due)))
    closed = sum([await was_closed(asked) for asked in held])
    if closed < half_open:
        raise Misbehaved(f"{half_open - closed} half-open connections outlived the limit of a header")
    gone = time.perf_counter()
    for asked in held + silent:
        asked.close()
    await server.until_idle()
    figures["all_free_after_ms"] = 1000 * (time.perf_counter() - gone)
    return figures


async def was_closed(asked):
    try:
        async with asyncio.timeout(2):
            while await asked.receive():
                pass
        return True
    except TimeoutError:
        return False


async def probed(server, probes):
    seconds = []
    for _ in range(probes):
        began = time.perf_counter()
        if await server.status("/livez") != 200:
            raise Misbehaved("/livez failed")
        seconds.append(time.perf_counter() - began)
        await asyncio.sleep(0.01)
    return percentiles(seconds)


# The end


async def stopped(server, questions, streams=8):
    """SIGTERM while streams run: all of them have to be brought to their end, and the program to 0."""
    works = [await (await Asked.begin(server, questions.long(200))).until_text() for _ in range(streams)]
    began = time.perf_counter()
    server.process.send_signal(signal.SIGTERM)
    await server.until(lambda: readiness(server), 503, "/readyz did not say that it stops")
    not_ready = time.perf_counter() - began
    answers = await asyncio.gather(*(work.answer() for work in works))
    code = await asyncio.to_thread(server.process.wait, PATIENCE)
    whole = sum(b'"usage"' in answer.body for answer in answers)
    if code != 0:
        raise Misbehaved(f"it ended with {code}")
    return {
        "streams": streams,
        "ended_whole": whole,
        "not_ready_after_ms": 1000 * not_ready,
        "seconds": time.perf_counter() - began,
        "exit_code": code,
    }


async def readiness(server):
    try:
        return await server.status("/readyz")
    except ConnectionRefusedError:
        raise Misbehaved("it was gone before its streams had ended") from None


# Figures


def percentiles(seconds):
    if not seconds:
        return None
    ordered = sorted(seconds)
    places = {"p50": int(0.5 * len(ordered)), "p99": int(0.99 * len(ordered)), "max": len(ordered) - 1}
    return {name: 1000 * ordered[place] for name, place in places.items()}


def table(report):
    offered = ["1x", "10x", "10x again", "10x by handle"]
    loads = [("one client", "alone"), (f"{CLOSED_CLIENTS} clients", "capacity"), *zip(offered, offered)]
    lines = [
        "| load | due/s | answered/s | 200 | 429 | first text p50 / p99 | whole answer p50 / p99 | refusal p50 / p99 | memory start → max → end | descriptors |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, key in loads:
        load = report[key]
        memory, files = load.get("rss_mib"), load.get("descriptors")
        lines.append("| " + " | ".join([
            name,
            f"{load['due_per_second']:.0f}" if "due_per_second" in load else "",
            f"{load.get('accepted_per_second', load.get('answers_per_second')):.0f}",
            str(load["statuses"].get(200, 0)),
            str(load["statuses"].get(429, 0)),
            pair(load["first_text_ms"]),
            pair(load["answer_ms"]),
            pair(load["refusal_ms"]),
            f"{memory['start']:.0f} → {memory['max']:.0f} → {memory['end']:.0f} MiB, {memory['slope_per_minute']:+.1f} MiB/min" if memory else "",
            f"{files['start']} → {files['max']} → {files['end']}" if files else "",
        ]) + " |")
    lines += ["", "| client goes away | place free after p50 / p99 | counted as cancelled |", "|---|---|---|"]
    for name, row in report["cancel"].items():
        lines.append(f"| {name} | {pair(row['free_after_ms'])} | {row['counted_as_cancelled']} of {row['clients']} |")
    held, stop = report["held"], report["stop"]
    lines += [
        "",
        "| `/livez` | p50 / p99 |",
        "|---|---|",
        f"| nothing else | {pair(held['free_ms'])} |",
        f"| 500 half-open connections | {pair(held['half_open_ms'])} |",
        f"| and 50 clients that read nothing ({held['requests_held']} requests held) | {pair(held['half_open_and_unread_ms'])} |",
        "",
        f"All places free {held['all_free_after_ms']:.0f} ms after these clients went away. "
        f"Memory {report['idle']['rss_mib']:.0f} MiB when ready, {report['after']['rss_mib']:.0f} MiB at the end, "
        f"{report['after']['caches_mib']:.0f} MiB of it caches; "
        f"descriptors {report['idle']['descriptors']} and {report['after']['descriptors']}.",
        f"SIGTERM with {stop['streams']} streams: `/readyz` says so after {stop['not_ready_after_ms']:.0f} ms, "
        f"{stop['ended_whole']} streams came to their end, exit code {stop['exit_code']} after {stop['seconds']:.1f} s.",
        f"The client was late by {pair(report['1x']['client_late_ms'])} (1x) and {pair(report['10x']['client_late_ms'])} (10x); "
        f"{report['10x']['not_sent']} questions of 10x were not sent. Cores used by server and clients: "
        + ", ".join(f"{cores(report[name])} ({name})" for name in offered) + ".",
    ]
    return "\n".join(lines)


def cores(load):
    return f"{load['cores']['server']:.2f} and {load['cores']['clients']:.2f}"


def pair(figures):
    return f"{figures['p50']:.1f} / {figures['p99']:.1f} ms" if figures else ""


if __name__ == "__main__":
    main()

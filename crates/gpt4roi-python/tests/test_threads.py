import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from conftest import AIRPLANE, BREAD, EXAMPLE, OCTOPUS

# Hot draws go on for long: the model seldom draws the end of an answer.
LONG = {"temperature": 50.0, "top_k": 0, "seed": 3}


class Counter(threading.Thread):
    """Counts for as long as a block runs, which it can only while the interpreter is free."""

    def __init__(self):
        super().__init__(daemon=True)
        self.count, self.is_over = 0, False

    def run(self):
        while not self.is_over:
            self.count += 1
            time.sleep(0.001)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.is_over = True
        self.join()


def describe(model):
    return model.describe(EXAMPLE, [OCTOPUS, BREAD, AIRPLANE] * 40)


def ask(model):
    chat = model.chat(EXAMPLE)
    chat.add_region(OCTOPUS)
    return chat.ask("What is <region1>?", **LONG)


def choose(model):
    chat = model.chat(EXAMPLE)
    chat.add_region(OCTOPUS)
    return chat.choose("What is <region1>?", [f"A cat of {number} years." for number in range(300)])


@pytest.mark.parametrize("compute", [describe, ask, choose])
def test_other_threads_run_while_the_model_computes(model, compute):
    with Counter() as counter:
        compute(model)
        counted = counter.count
    # Several hundred a second. One that waits for the interpreter would get two or three in all.
    assert counted >= 10


def test_threads_share_a_model(model):
    boxes = [OCTOPUS, BREAD, AIRPLANE] * 4
    expected = [answer.text for answer in model.describe(EXAMPLE, boxes)]

    def alone(box):
        chat = model.chat(EXAMPLE)
        return chat.ask(f"What is {chat.add_region(box)}?").text

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(alone, boxes)) == expected


def test_threads_that_share_a_conversation_wait_for_each_other(chat):
    chat.add_region(OCTOPUS)
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: chat.ask("What is <region1>?").text, range(8)))
    assert len(answers) == len(chat.transcript()["rounds"]) == 8
    assert answers[0] == "An octopus."


INTERRUPTED = """
import _thread, signal, threading, time
# Whoever starts the tests in the background may have Ctrl-C ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
import gpt4roi
from conftest import AIRPLANE, EXAMPLE
from test_threads import LONG

model = gpt4roi.load()
chat = model.chat(EXAMPLE)
chat.add_region(AIRPLANE)
before = chat.transcript()

def ask():
    chat.ask("What is <region1>?", **LONG)

def stream():
    for piece in chat.stream("What is <region1>?", **LONG):
        pass

def describe():
    model.describe(EXAMPLE, [AIRPLANE] * 2000, **LONG)

def choose():
    chat.choose("What is <region1>?", [f"A cat of {number} years." for number in range(3000)])

begin = time.monotonic()
try:
    threading.Timer(0.1, _thread.interrupt_main).start()
    COMPUTE()
except KeyboardInterrupt:
    print("interrupted")
assert time.monotonic() - begin < 10
assert chat.transcript() == before, chat.transcript()
print(chat.ask("What is <region1>?"))
"""


@pytest.mark.parametrize("compute", ["ask", "stream", "describe", "choose"])
def test_ctrl_c_ends_an_answer(compute):
    """In a process of its own, since Ctrl-C is for the main thread, and should not end the tests if it goes wrong.

    Without it each would take seconds, and be a part of the conversation.
    """
    find_tests = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    script = find_tests + INTERRUPTED.replace("COMPUTE", compute)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout == "interrupted\nAn airplane.\n", done.stderr

"""Message queue in a folder, with real producer and consumer processes."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from kombu import Connection, Consumer, Message, Producer, Queue
from kombu.exceptions import ChannelError
from kombu.simple import SimpleQueue

from coordinator.queue import file_transport

SPAWN = multiprocessing.get_context("spawn")
QUEUE = Queue("work")
PRODUCERS, CONSUMERS, MESSAGES_PER_PRODUCER = 4, 2, 2_500

WORKER_PROGRAM = """
import sys
from pathlib import Path
from celery import Celery
from coordinator.queue import file_transport

folder, written = Path(sys.argv[1]), Path(sys.argv[2])
app = Celery(broker=file_transport.BROKER_URL)
app.conf.update(
    broker_transport_options=file_transport.transport_options(folder),
    broker_connection_retry_on_startup=True,
    task_ignore_result=True,
    worker_enable_remote_control=False,
    worker_prefetch_multiplier=1,
)

@app.task(name="write")
def write(word: str) -> None:
    with written.open("a") as lines:
        lines.write(word + "\\n")

app.worker_main(["worker", "-P", "threads", "-c", "2", "--without-gossip", "--without-mingle", "--without-heartbeat"])
"""


def connect(folder: Path) -> Connection:
    return Connection(file_transport.BROKER_URL, transport_options=file_transport.transport_options(folder))


@contextmanager
def open_queue(folder: Path, name: str = QUEUE.name) -> Iterator[SimpleQueue]:
    with connect(folder) as connection, connection.SimpleQueue(name) as queue:
        yield queue


def received(queue: SimpleQueue) -> list[Any]:
    """Everything in the queue, acknowledged, in the order of delivery."""
    bodies = []
    while queue.qsize():
        message = queue.get(timeout=10)
        message.ack()
        bodies.append(message.payload)
    return bodies


def put_file(folder: Path, name: str, content: bytes, queue: str = QUEUE.name) -> Path:
    path = folder / "queues" / queue / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def wait_until(holds: Callable[[], bool], what: str, limit_seconds: float = 60) -> None:
    deadline = time.monotonic() + limit_seconds
    while not holds():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {limit_seconds} s in vain until {what}")
        time.sleep(0.05)


def produce(folder: Path, producer: int) -> None:
    with connect(folder) as connection:
        publisher = Producer(connection.channel())
        for n in range(MESSAGES_PER_PRODUCER):
            publisher.publish([producer, n], routing_key=QUEUE.name, serializer="json")


def consume(folder: Path, produced: Event, taken: Path) -> None:
    with connect(folder) as connection, taken.open("w") as lines:

        def keep(body: list[int], message: Message) -> None:
            lines.write(json.dumps(body) + "\n")
            message.ack()

        with Consumer(connection.channel(), [QUEUE], callbacks=[keep], accept=["json"], prefetch_count=1):
            while True:
                all_were_produced = produced.is_set()
                try:
                    connection.drain_events(timeout=0.5)
                except TimeoutError:
                    if all_were_produced:
                        return


def take_one_and_hang(folder: Path, taken: Event) -> None:
    with open_queue(folder) as queue:
        queue.get(timeout=30)
        taken.set()
        time.sleep(600)


class TestDelivery:
    def test_of_10_000_messages_from_four_processes_each_reaches_one_of_two_consumers_once(
        self, tmp_path: Path
    ) -> None:
        folder, produced = tmp_path / "queue", SPAWN.Event()
        taken = [tmp_path / f"taken-{n}" for n in range(CONSUMERS)]
        consumers = [SPAWN.Process(target=consume, args=(folder, produced, path)) for path in taken]
        producers = [SPAWN.Process(target=produce, args=(folder, n)) for n in range(PRODUCERS)]
        for process in [*consumers, *producers]:
            process.start()
        for process in producers:
            process.join()
        produced.set()
        for process in consumers:
            process.join()

        assert [process.exitcode for process in [*producers, *consumers]] == [0] * (PRODUCERS + CONSUMERS)
        counted = Counter(tuple(json.loads(line)) for path in taken for line in path.read_text().splitlines())
        sent = {(producer, n) for producer in range(PRODUCERS) for n in range(MESSAGES_PER_PRODUCER)}
        assert counted == dict.fromkeys(sent, 1)
        assert all(path.stat().st_size > 0 for path in taken)
        assert files(folder) == []

    def test_messages_of_one_producer_arrive_in_their_order(self, tmp_path: Path) -> None:
        with open_queue(tmp_path) as queue:
            for n in range(20):
                queue.put(n)
            assert received(queue) == list(range(20))

    def test_a_message_older_than_those_already_taken_is_delivered_too(self, tmp_path: Path) -> None:
        with open_queue(tmp_path) as queue:
            queue.put("late")
            late = next((tmp_path / "queues" / QUEUE.name).iterdir())
            content = late.read_bytes()
            assert received(queue) == ["late"]
            put_file(tmp_path, "00000000000000000001-late.json", content)
            assert received(queue) == ["late"]

    def test_queues_are_apart(self, tmp_path: Path) -> None:
        with open_queue(tmp_path, "one") as one, open_queue(tmp_path, "one.more") as more:
            one.put(1)
            more.put(2)
            assert (received(one), received(more)) == ([1], [2])

    def test_a_message_that_was_not_acknowledged_comes_again_after_a_clean_close(self, tmp_path: Path) -> None:
        with open_queue(tmp_path) as queue:
            queue.put("again")
            queue.get(timeout=10)
        with open_queue(tmp_path) as queue:
            assert received(queue) == ["again"]

    def test_a_consumer_killed_with_a_message_in_hand_leaves_a_queue_that_works(self, tmp_path: Path) -> None:
        taken = SPAWN.Event()
        with open_queue(tmp_path) as queue:
            for n in range(3):
                queue.put(n)
            consumer = SPAWN.Process(target=take_one_and_hang, args=(tmp_path, taken))
            consumer.start()
            assert taken.wait(60)
            consumer.kill()
            consumer.join()
            assert received(queue) == [1, 2]
        assert files(tmp_path) == []

    def test_a_purge_says_how_many_messages_it_removed(self, tmp_path: Path) -> None:
        with open_queue(tmp_path) as queue, open_queue(tmp_path, "other") as other:
            for n in range(3):
                queue.put(n)
            other.put("kept")
            assert queue.qsize() == 3
            assert queue.clear() == 3
            assert queue.qsize() == 0
            assert received(other) == ["kept"]


class TestBadInput:
    @pytest.mark.parametrize(
        "content",
        [
            pytest.param(b"", id="empty"),
            pytest.param(b'{"body": "WyJ', id="half of a message"),
            pytest.param(b"\xff\xfe\x00", id="not UTF-8"),
            pytest.param(b"[1, 2]", id="a list"),
            pytest.param(b'{"body": "W10="}', id="no properties"),
            pytest.param(b'{"body": "*", "properties": {"delivery_tag": "1", "body_encoding": "b"}}', id="bad body"),
            pytest.param(b'{"properties": {"delivery_tag": "1"}, "headers": [1]}', id="headers are a list"),
            pytest.param(b"[" * 100_000, id="nested too deep"),
        ],
    )
    def test_a_file_that_is_no_message_is_dropped_and_stops_nothing(self, tmp_path: Path, content: bytes) -> None:
        bad = put_file(tmp_path, "0.json", content)
        with open_queue(tmp_path) as queue:
            queue.put("good")
            message = queue.get(timeout=10)
            message.ack()
            assert message.payload == "good"
        assert not bad.exists()

    def test_a_folder_in_place_of_a_message_stops_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "queues" / QUEUE.name / "0.json").mkdir(parents=True)
        with open_queue(tmp_path) as queue:
            queue.put("good")
            assert queue.get(timeout=10).payload == "good"

    def test_what_a_dead_producer_left_half_written_is_removed_and_what_is_being_written_is_not(
        self, tmp_path: Path
    ) -> None:
        writing = tmp_path / "writing"
        writing.mkdir()
        (writing / "left.json").write_text("{")
        (writing / "fresh.json").write_text("{")
        an_hour_ago = time.time() - 3600
        os.utime(writing / "left.json", (an_hour_ago, an_hour_ago))
        with open_queue(tmp_path) as queue:
            assert queue.qsize() == 0
        assert files(tmp_path) == ["fresh.json"]

    @pytest.mark.parametrize("name", ["../outside", "a/b", ".hidden", ".."])
    def test_a_queue_name_that_cannot_name_a_folder_is_refused(self, tmp_path: Path, name: str) -> None:
        with connect(tmp_path / "queue") as connection, pytest.raises(ChannelError, match="queue name"):
            Producer(connection.channel()).publish("x", routing_key=name, serializer="json")
        assert files(tmp_path) == []

    def test_transport_options_without_a_folder_are_refused_by_name(self) -> None:
        with (
            Connection(file_transport.BROKER_URL) as connection,
            pytest.raises(ValueError, match="broker_transport_options: 'folder' is missing"),
        ):
            connection.channel()


@contextmanager
def celery_worker(folder: Path, written: Path) -> Iterator[subprocess.Popen[bytes]]:
    root = Path(__file__).parents[3]
    worker = subprocess.Popen([sys.executable, "-c", WORKER_PROGRAM, str(folder), str(written)], cwd=root)
    try:
        yield worker
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(60) == 0
    finally:
        worker.kill()
        worker.wait()


class TestCelery:
    def test_a_worker_with_threads_runs_what_another_process_sends_and_survives_bad_messages(
        self, tmp_path: Path
    ) -> None:
        folder, written = tmp_path / "queue", tmp_path / "written"
        written.touch()
        sender = Celery(broker=file_transport.BROKER_URL)
        sender.conf.broker_transport_options = file_transport.transport_options(folder)
        sender.conf.task_ignore_result = True

        def words() -> list[str]:
            return sorted(written.read_text().split())

        with celery_worker(folder, written):
            sender.send_task("write", ["before"])
            wait_until(lambda: words() == ["before"], "the first task ran")
            put_file(folder, "0.json", b"", "celery")
            put_file(folder, "1.json", b'{"body": "WyJ', "celery")
            with open_queue(folder, "celery") as queue:
                queue.put({"no": "task"})
                queue.put("gASVBgAAAAAAAACMAmhplC4=", serializer="pickle")
            sender.send_task("unknown")
            for n in range(20):
                sender.send_task("write", [f"after-{n:02d}"])
            wait_until(lambda: len(words()) == 21, "all tasks ran")
        sender.close()
        assert words() == [*(f"after-{n:02d}" for n in range(20)), "before"]
        assert files(folder) == []

"""A consumer of flinks-bridge's topics that works on each webhook once.

    python consumer.py --brokers HOST:PORT --group NAME --store FILE flinks.kyc flinks.accounts-detail

Delivery is at least once, so a record may come twice: Flinks tried again, Kafka was away for a moment, or this process
died after its work and before its commit. Work and the record's `ce_id` are therefore written in one transaction of one
database: either both are there or neither is, whenever the process dies. The offset is committed after that; if that is
lost, the record comes again and its `ce_id` is found. With several processes in the group the store must be one that
they share, such as PostgreSQL with `INSERT ... ON CONFLICT DO NOTHING`; SQLite stands for it here.
"""
import argparse
import json
import signal
import sqlite3
import sys

from confluent_kafka import Consumer, KafkaException

# Flinks' last attempt comes after 4.5 hours; a redriven record after weeks: topics keep records for 14 days, dead
# letters for 30.
KEEP = "-45 days"

STORE = """
CREATE TABLE IF NOT EXISTS processed (ce_id TEXT PRIMARY KEY, ce_source TEXT, ce_type TEXT, ce_requestid TEXT, at TEXT);
CREATE TABLE IF NOT EXISTS work (ce_id TEXT, login_id TEXT, ce_type TEXT, parts INTEGER);
CREATE TABLE IF NOT EXISTS set_aside (topic TEXT, part INTEGER, position INTEGER, reason TEXT,
                                      PRIMARY KEY (topic, part, position));
"""


class Poison(Exception):
    """A record that no further attempt makes better. Says why, in words without personal data."""


def handle(store, message):
    """All of one record's work, in one transaction. Says what became of it."""
    headers = {name: value.decode(errors="replace") for name, value in message.headers() or [] if value is not None}
    ce_id, ce_type, value = headers.get("ce_id"), headers.get("ce_type"), message.value()
    if not value:
        return "tombstone"  # on flinks.login-links: delete what is kept of this key
    if "ce_httpstatuscode" in headers or "ce_flinkscode" in headers:
        return "no result"  # the body tells of an error at Flinks
    if ce_id is None:
        raise Poison("no ce_id")
    # First the id: it takes the row's lock, so that of two processes with the same record one waits for the other.
    # Whether Flinks' retries repeat the bytes is not known. If yours must not be worked on twice even then, make
    # (ce_source, ce_type, ce_requestid) UNIQUE.
    key = (ce_id, headers.get("ce_source"), ce_type, headers.get("ce_requestid"))
    new = store.execute("INSERT OR IGNORE INTO processed VALUES (?, ?, ?, ?, datetime('now'))", key).rowcount
    if not new:
        return "duplicate"
    try:
        body = json.loads(value.decode("utf-8-sig"))
        parts = body.get("Accounts" if ce_type == "com.flinks.accounts-detail" else "Holders")
    except (ValueError, AttributeError, RecursionError) as error:
        raise Poison(f"no JSON object: {type(error).__name__}") from error
    # The work. Members may be absent, null or something else, and others may be there.
    login_id = message.key().decode(errors="replace") if message.key() else None
    count = len(parts) if isinstance(parts, list) else 0
    store.execute("INSERT INTO work VALUES (?, ?, ?, ?)", (ce_id, login_id, ce_type, count))
    return "done"


def main():
    options = argparse.ArgumentParser()
    for name in ("--brokers", "--group", "--store"):
        options.add_argument(name, required=True)
    options.add_argument("topics", nargs="+")
    options = options.parse_args()

    stop = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.append(True))
    store = sqlite3.connect(options.store)
    with store:
        store.executescript(STORE)
        store.execute("DELETE FROM processed WHERE at < datetime('now', ?)", (KEEP,))
    consumer = Consumer({
        "bootstrap.servers": options.brokers,
        "group.id": options.group,
        "auto.offset.reset": "earliest",
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "session.timeout.ms": 15000,  # how long the partitions of a killed process wait for another
        "isolation.level": "read_committed",  # redriven records are written in transactions
        # Values reach 32 MiB, those of attributes 64. A larger record than a limit is fetched all the same; these bound
        # what is fetched ahead, which by default is 64 MiB a partition.
        "queued.max.messages.kbytes": 16384,
        "fetch.max.bytes": 33554432,
        "receive.message.max.bytes": 100000000,
    })
    consumer.subscribe(options.topics)
    try:
        while not stop:
            messages = consumer.consume(100, 0.5)
            for message in messages:
                if message.error():
                    raise KafkaException(message.error())
                place = (message.topic(), message.partition(), message.offset())
                try:
                    with store:  # commits, or rolls back if it raises: then it ends, and the record comes again
                        outcome = handle(store, message)
                except Poison as poison:  # whoever comes behind it must not wait; a person looks at its place
                    outcome = "set aside"
                    with store:
                        store.execute("INSERT OR IGNORE INTO set_aside VALUES (?, ?, ?, ?)", (*place, str(poison)))
                print(outcome, *place, flush=True)  # ids and places alone: the rest is personal data
                consumer.store_offsets(message)
                if stop:
                    break
            if messages:
                consumer.commit(asynchronous=False)
    finally:
        consumer.close()
        store.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())

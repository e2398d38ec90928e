// A consumer of flinks-bridge's topics that works on each webhook once.
//
//   node consumer.mjs --brokers HOST:PORT --group NAME --store FILE flinks.kyc flinks.accounts-detail
//
// Delivery is at least once, so a record may come twice: Flinks tried again, Kafka was away for a moment, or this process
// died after its work and before its commit. Work and the record's `ce_id` are therefore written in one transaction of
// one database: either both are there or neither is, whenever the process dies. The offset is committed after that; if
// that is lost, the record comes again and its `ce_id` is found. With several processes in the group the store must be
// one that they share, such as PostgreSQL with `INSERT ... ON CONFLICT DO NOTHING`; SQLite stands for it here.
//
// The client is plain JavaScript and maintained; others download or compile librdkafka when they are installed.
import { DatabaseSync } from 'node:sqlite';
import { parseArgs } from 'node:util';
import { Consumer } from '@platformatic/kafka';

// Flinks' last attempt comes after 4.5 hours; a redriven record after weeks: topics keep records for 14 days, dead
// letters for 30.
const KEEP = '-45 days';

const { values: options, positionals: topics } = parseArgs({
  options: { brokers: { type: 'string' }, group: { type: 'string' }, store: { type: 'string' } },
  allowPositionals: true,
});
if (!options.brokers || !options.group || !options.store || topics.length === 0) {
  console.error('usage: node consumer.mjs --brokers HOST:PORT --group NAME --store FILE TOPIC...');
  process.exit(64);
}

const store = new DatabaseSync(options.store, { timeout: 5000 });
store.exec(`
  CREATE TABLE IF NOT EXISTS processed (ce_id TEXT PRIMARY KEY, ce_source TEXT, ce_type TEXT, ce_requestid TEXT, at TEXT);
  CREATE TABLE IF NOT EXISTS work (ce_id TEXT, login_id TEXT, ce_type TEXT, parts INTEGER);
  CREATE TABLE IF NOT EXISTS set_aside (topic TEXT, part INTEGER, position INTEGER, reason TEXT,
                                        PRIMARY KEY (topic, part, position));
`);
store.prepare("DELETE FROM processed WHERE at < datetime('now', ?)").run(KEEP);
const remember = store.prepare("INSERT OR IGNORE INTO processed VALUES (?, ?, ?, ?, datetime('now'))");
const work = store.prepare('INSERT INTO work VALUES (?, ?, ?, ?)');
const setAside = store.prepare('INSERT OR IGNORE INTO set_aside VALUES (?, ?, ?, ?)');

/** A record that no further attempt makes better. Says why, in words without personal data. */
class Poison extends Error {}

/** All of one record's work, within a transaction. Says what became of it. */
function handle({ key, value, headers: pairs }) {
  const headers = new Map([...pairs].map(([name, text]) => [name.toString(), text?.toString() ?? null]));
  const header = (name) => headers.get(name) ?? null;
  if (!value?.length) return 'tombstone'; // on flinks.login-links: delete what is kept of this key
  if (header('ce_httpstatuscode') || header('ce_flinkscode')) return 'no result'; // the body tells of an error at Flinks
  const [id, type] = [header('ce_id'), header('ce_type')];
  if (!id) throw new Poison('no ce_id');
  // First the id: it takes the row's lock, so that of two processes with the same record one waits for the other.
  // Whether Flinks' retries repeat the bytes is not known. If yours must not be worked on twice even then, make
  // (ce_source, ce_type, ce_requestid) UNIQUE.
  const { changes } = remember.run(id, header('ce_source'), type, header('ce_requestid'));
  if (changes === 0) return 'duplicate';
  let body;
  try {
    body = JSON.parse(value.toString().replace(/^\uFEFF/, ''));
  } catch {}
  if (typeof body !== 'object' || body === null || Array.isArray(body)) throw new Poison('no JSON object');
  // The work. Members may be absent, null or something else, and others may be there.
  const parts = body[type === 'com.flinks.accounts-detail' ? 'Accounts' : 'Holders'];
  work.run(id, key?.toString() ?? null, type, Array.isArray(parts) ? parts.length : 0);
  return 'done';
}

const consumer = new Consumer({
  groupId: options.group,
  clientId: 'example',
  bootstrapBrokers: options.brokers.split(','),
  sessionTimeout: 15_000, // how long the partitions of a killed process wait for another
  // Redriven records are written in transactions; READ_COMMITTED (1) is this client's default too.
  isolationLevel: 1,
  // Values reach 32 MiB, those of attributes 64. A larger record than a limit is fetched all the same; these bound what
  // is fetched ahead.
  maxBytes: 16 * 1024 * 1024,
  maxBytesPerPartition: 1024 * 1024,
  highWaterMark: 64,
});
const stream = await consumer.consume({ topics, mode: 'committed', fallbackMode: 'earliest', autocommit: false });
let stopping = false;
for (const signal of ['SIGTERM', 'SIGINT']) {
  process.once(signal, () => {
    stopping = true;
    stream.close().catch((error) => console.error(error.message)); // ends the loop below
  });
}

for await (const message of stream) {
  const place = [message.topic, message.partition, Number(message.offset)];
  let outcome;
  store.exec('BEGIN IMMEDIATE');
  try {
    outcome = handle(message);
    store.exec('COMMIT');
  } catch (error) {
    store.exec('ROLLBACK');
    if (!(error instanceof Poison)) throw error; // it ends, and the record comes again
    outcome = 'set aside'; // whoever comes behind it must not wait; a person looks at its place
    setAside.run(...place, error.message);
  }
  console.log(outcome, ...place); // ids and places alone: the rest is personal data
  if (stopping) break; // its commit is lost with the connection; its ce_id is not
  await message.commit();
}
await consumer.close(true);
store.close();

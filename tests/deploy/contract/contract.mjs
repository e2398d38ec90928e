// Judges deploy/asyncapi.yaml: with the AsyncAPI parser alone, or against facts from the bridge's own code too.
//
//   node contract.mjs ASYNCAPI [FACTS]
//
// FACTS is what tests/it/contract.rs writes: the topics with their `ce_type` and shape, every header name, records that
// the bridge made, and records that it never would. A record must fit exactly one message of its topic's channel, by
// key, headers and value, and have no header that this message does not name; a refused one must fit none. Exit code 1:
// a fault, each on a line of its own.
import { readFileSync } from 'node:fs';
import { Parser } from '@asyncapi/parser';
import Ajv from 'ajv';

const [asyncapi, facts] = process.argv.slice(2);
const faults = [];
const fault = (text) => faults.push(text);

const { document, diagnostics } = await new Parser().parse(readFileSync(asyncapi, 'utf8'), { source: asyncapi });
// Hints and warnings too: none is left to be got used to.
for (const { code, path, message } of diagnostics) fault(`${code} at ${path.join('.')}: ${message}`);

let said = 'nothing of it compared with the code';
if (document) {
  const channels = new Map(document.channels().all().map((channel) => [channel.address(), channel.json()]));
  // Strict, so that a misspelt keyword is a fault and not a constraint that nobody checks. `format` says to readers what
  // a pattern beside it checks.
  const ajv = new Ajv({ strict: true, strictTypes: false, strictRequired: false, validateFormats: false });
  ajv.addVocabulary(['x-parser-schema-id', 'x-parser-message-name', 'x-parser-unique-object-id']);
  const judges = new Map();
  for (const [address, channel] of channels) {
    const messages = Object.entries(channel.messages).map(([name, message]) => ({
      name,
      key: compiled(`key of ${name}`, message.bindings.kafka.key),
      headers: compiled(`headers of ${name}`, message.headers),
      value: compiled(`value of ${name}`, message.payload),
      json: (message.contentType ?? document.json().defaultContentType) === 'application/json',
      named: names(message.headers),
      type: message.headers.properties?.ce_type?.const,
    }));
    judges.set(address, messages);
  }

  function compiled(what, schema) {
    try {
      return ajv.compile(schema);
    } catch (error) {
      fault(`${what}: ${error.message}`);
      return Object.assign(() => false, { errors: [] });
    }
  }

  if (facts) {
    const code = JSON.parse(readFileSync(facts, 'utf8'));
    for (const [address, channel] of channels) compareShape(address, channel.bindings.kafka, code.shapes[address]);
    compare(code, judges);
  }
}

for (const text of faults) console.error(`contract: ${text}`);
if (faults.length === 0) console.log(`contract: ${asyncapi} is good, ${said}`);
process.exitCode = faults.length === 0 ? 0 : 1;

function compare({ topics, headers, records, refused }, judges) {
  same('topics', [...judges.keys()], Object.keys(topics));
  for (const [address, messages] of judges) {
    same(`ce_type on ${address}`, [...new Set(messages.map(({ type }) => type).filter(Boolean))], topics[address] ?? []);
  }
  const named = [...judges.values()].flat().flatMap((message) => [...message.named]);
  same('header names', [...new Set(named)], headers);

  const used = new Set();
  for (const record of records) {
    const fits = fitting(record, judges);
    if (fits.length !== 1) {
      fault(`${record.name} on ${record.topic} fits ${fits.length} messages:${misfits(record, judges)}`);
      continue;
    }
    used.add(`${record.topic} ${fits[0].name}`);
    const unnamed = Object.keys(record.headers).filter((name) => !fits[0].named.has(name));
    if (unnamed.length > 0) fault(`${record.name}: message ${fits[0].name} does not name the headers ${unnamed}`);
  }
  for (const record of refused) {
    for (const { name } of fitting(record, judges)) fault(`${record.name} on ${record.topic} fits message ${name}`);
  }
  // A message that no record showed may say anything.
  const all = [...judges].flatMap(([address, messages]) => messages.map(({ name }) => `${address} ${name}`));
  same('messages that a record was seen for', [...used], all);
  said = `${all.length} messages on ${judges.size} topics, ${records.length} records of the bridge fit, ` +
    `${refused.length} broken ones do not`;
}

/** Partitions, copies and settings: the contract names some of what role `topics` makes, and none otherwise. */
function compareShape(address, told, made) {
  if (!made) return; // a topic that the code does not have; that is told elsewhere
  for (const what of ['partitions', 'replicas']) {
    if (told[what] !== made[what]) fault(`${address}: ${what} are ${told[what]}, the code makes ${made[what]}`);
  }
  for (const name of ['cleanup.policy', 'max.message.bytes', 'retention.ms']) {
    const lacks = name in made.topicConfiguration && !(name in told.topicConfiguration);
    if (lacks) fault(`${address}: ${name} is missing`);
  }
  for (const [name, value] of Object.entries(told.topicConfiguration)) {
    const is = made.topicConfiguration[name];
    if (String(value) !== is) fault(`${address}: ${name} is ${value}, the code makes ${is}`);
  }
}

function fitting(record, judges) {
  const value = read(record);
  return (judges.get(record.topic) ?? []).filter(
    (message) =>
      message.key(record.key) && message.headers(record.headers) && fitsValue(message, value),
  );
}

function fitsValue(message, { bytes, json, isJson }) {
  if (bytes === null) return message.value(null);
  return message.json ? isJson && message.value(json) : message.value(bytes);
}

/** Why none fits; ajv keeps the errors of its last call. */
function misfits(record, judges) {
  const value = read(record);
  const tell = (what, judge, at) =>
    judge(at) ? '' : ` ${what} ${judge.errors.map((error) => `${error.instancePath} ${error.message}`)};`;
  return (judges.get(record.topic) ?? []).map((message) =>
    `\n  ${message.name}:${tell('key', message.key, record.key)}${tell('headers', message.headers, record.headers)}` +
      tell('value', message.value, message.json ? value.json : value.bytes)).join('');
}

function read({ value }) {
  if (value === null) return { bytes: null, json: null, isJson: false };
  const bytes = Buffer.from(value, 'base64').toString('utf8');
  try {
    return { bytes, json: JSON.parse(bytes.replace(/^\uFEFF/, '')), isJson: true };
  } catch {
    return { bytes, json: undefined, isJson: false };
  }
}

/** The names of the properties of a schema and of all that it is made of. */
function names(schema) {
  return new Set([...Object.keys(schema.properties ?? {}), ...(schema.allOf ?? []).flatMap((part) => [...names(part)])]);
}

function same(what, found, expected) {
  const without = (some, others) => some.filter((one) => !others.includes(one));
  const [more, less] = [without(found, expected), without(expected, found)];
  if (more.length > 0) fault(`${what}: the contract alone has ${more.join(', ')}`);
  if (less.length > 0) fault(`${what}: the contract lacks ${less.join(', ')}`);
}

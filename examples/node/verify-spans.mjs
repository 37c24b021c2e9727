#!/usr/bin/env node
// Verifies signed spans offline, with nothing but Node.js: node verify-spans.mjs keys.json signed.json
//
// Written from docs/signed-spans.md alone; numbers in comments are its sections. It prints a verdict for each document of
// the file, and exits with 0 if all are VALID, with 1 if one is not, and with 2 if the key set cannot be read.

import { createHash, createPublicKey, verify as verifyEd25519 } from "node:crypto";
import { readFileSync, realpathSync } from "node:fs";
import { fileURLToPath } from "node:url";

import { Malformed, decode, parse } from "./strict-json.mjs";

const SPAN = "application/vnd.betrace.span.v1+json";
const TREE_HEAD = "application/vnd.betrace.tree-head.v1+json";
const TEXTS = ["control", "error", "evidenceType", "framework", "name", "result"];
const IDS = { parentSpanId: 16, spanId: 16, traceId: 32 };
const SECOND = 10n ** 9n;
const TIMES = {
  startTimeUnixNano: [-62135596800n * SECOND, 253402300800n * SECOND - 1n],
  durationNano: [-315576000001n * SECOND + 1n, 315576000001n * SECOND - 1n],
};
const NESTING = 32;
const PRIME = 2n ** 255n - 19n;
const ORDER_8 = 0x7a03ac9277fdc74ec6cc392cfa53202a0f67100d760b3cba4fd84d3d706a17c7n;
const SMALL_ORDER = new Set([0n, 1n, PRIME - 1n, ORDER_8, PRIME - ORDER_8]);

function demand(condition, what) {
  if (!condition) throw new Malformed(what);
}

/** Returns an object's members, and refuses those that are not listed and those that are missing (5.4). */
function members(value, required, optional = []) {
  demand(value instanceof Map, "no object where there must be one");
  for (const name of value.keys()) demand(required.includes(name) || optional.includes(name), `the member ${name}`);
  for (const name of required) demand(value.has(name), `no member ${name}`);
  return Object.fromEntries(value);
}

function text(value) {
  demand(typeof value === "string", "no string where there must be one");
  return value;
}

function integer(value, least, most) {
  demand(/^(?:0|-?[1-9][0-9]*)$/.test(text(value)), "a number that is not spelled as decimal digits");
  demand(value.length <= 24 && BigInt(value) >= least && BigInt(value) <= most, "a number out of range");
  return BigInt(value);
}

function base64(value, encoding = "base64") {
  const bytes = Buffer.from(text(value), encoding);
  demand(bytes.toString(encoding) === value, `text that is not ${encoding}`);
  return bytes;
}

function sized(value, length) {
  const bytes = base64(value);
  demand(bytes.length === length, `${bytes.length} bytes where there must be ${length}`);
  return bytes;
}

/** Returns nanoseconds since 1970 of a time in RFC 3339 (5.1). */
function nanoseconds(value) {
  const found = /^(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?Z$/.exec(text(value));
  demand(found, "a time that is not in RFC 3339 with Z");
  const [year, month, day, hour, minute, second] = found.slice(1, 7).map(Number);
  const date = new Date(0);
  date.setUTCFullYear(year, month - 1, day);
  demand(year >= 1 && date.getUTCMonth() === month - 1 && date.getUTCDate() === day, "a day that does not exist");
  demand(hour < 24 && minute < 60 && second < 60, "a time of day that does not exist");
  date.setUTCHours(hour, minute, second);
  return BigInt(date.getTime()) * 1_000_000n + BigInt((found[7] ?? "").padEnd(9, "0"));
}

// 1.4: JSON.stringify writes strings and numbers as RFC 8785 says, and sort() compares UTF-16 code units.
const string = JSON.stringify;
const object = (pairs) => `{${pairs.sort(([a], [b]) => (a < b ? -1 : 1)).map(([name, json]) => `${string(name)}:${json}`)}}`;

/** Returns the canonical text of a typed value that lies in so many lists (1.3). */
function typedValue(value, lists = 0) {
  demand(value instanceof Map && value.size <= 1, "a value without one type");
  demand(lists <= NESTING, `a value in more than ${NESTING} lists`);
  if (value.size === 0) return "{}";
  const [[kind, content]] = value;
  return object([[kind, TYPES[kind] ? TYPES[kind](content, lists) : demand(false, `the type ${kind}`)]]);
}

function values(content, each) {
  const found = members(content, ["values"]).values;
  demand(Array.isArray(found), "values that are no list");
  return `{"values":[${each(found)}]}`;
}

const TYPES = Object.assign(Object.create(null), {
  stringValue: (content) => string(text(content)),
  boolValue: (content) => (demand(typeof content === "boolean", "no truth value"), string(content)),
  intValue: (content) => string(String(integer(content, -(2n ** 63n), 2n ** 63n - 1n))),
  doubleValue: (content) => (demand(typeof content === "number", "no number"), string(content)),
  bytesValue: (content) => string(base64(content).toString("base64")),
  arrayValue: (content, lists) => values(content, (found) => found.map((each) => typedValue(each, lists + 1))),
  kvlistValue: (content, lists) =>
    values(content, (found) => {
      const pairs = found.map((pair) => members(pair, ["key", "value"]));
      demand(new Set(pairs.map(({ key }) => text(key))).size === pairs.length, "a key twice");
      pairs.sort((one, other) => (one.key < other.key ? -1 : 1));
      return pairs.map(({ key, value }) => `{"key":${string(key)},"value":${typedValue(value, lists + 1)}}`);
    }),
});

/** Returns the canonical span of a document's `span` (1). */
function canonicalSpan(span, tenantId, keyId) {
  const given = members(span, [], ["attributes", ...TEXTS, ...Object.keys(IDS), ...Object.keys(TIMES)]);
  const pairs = [["tenantId", string(tenantId)], ["keyId", string(keyId)]];
  const add = (name, read) => pairs.push([name, given[name] == null ? "null" : string(read(given[name]))]);
  for (const name of TEXTS) add(name, text);
  for (const [name, [least, most]] of Object.entries(TIMES)) add(name, (value) => String(integer(value, least, most)));
  for (const [name, digits] of Object.entries(IDS)) {
    add(name, (value) => {
      demand(text(value).length === digits && /^[0-9a-f]+$/.test(value) && /[^0]/.test(value), `the ${name}`);
      return value;
    });
  }
  demand(given.traceId != null && given.spanId != null, "no traceId or spanId");
  const attributes = given.attributes ?? new Map();
  demand(attributes instanceof Map, "attributes that are no object");
  pairs.push(["attributes", object([...attributes].map(([name, value]) => [name, typedValue(value)]))]);
  return Buffer.from(object(pairs));
}

function readProof(value) {
  const given = members(value, ["treeSize", "rootHash", "signTime"], ["leafIndex", "hashes"]);
  const { leafIndex = "0", hashes = [] } = given;
  demand(Array.isArray(hashes) && hashes.length <= 64, "hashes that are no list of at most 64");
  return {
    leafIndex: integer(leafIndex, 0n, 2n ** 64n - 1n),
    treeSize: integer(given.treeSize, 0n, 2n ** 64n - 1n),
    rootHash: sized(given.rootHash, 32),
    hashes: hashes.map((hash) => sized(hash, 32)),
    signTime: nanoseconds(given.signTime),
  };
}

const sha256 = (prefix, ...parts) => createHash("sha256").update(Buffer.concat([Buffer.from([prefix]), ...parts])).digest();

/** Tells whether a canonical span is the leaf of a proof's tree (3.3). */
function isLeaf(span, { leafIndex, treeSize, rootHash, hashes }) {
  if (leafIndex >= treeSize) return false;
  let [fn, sn, r] = [leafIndex, treeSize - 1n, sha256(0, span)];
  for (const p of hashes) {
    if (sn === 0n) return false;
    if (fn % 2n === 1n || fn === sn) {
      r = sha256(1, p, r);
      while (fn % 2n === 0n && fn !== 0n) [fn, sn] = [fn >> 1n, sn >> 1n];
    } else {
      r = sha256(1, r, p);
    }
    [fn, sn] = [fn >> 1n, sn >> 1n];
  }
  return sn === 0n && r.equals(rootHash);
}

/** Reads the bytes of a JSON Web Key Set into its tenant and its keys (4). */
export function readKeySet(bytes) {
  const set = parse(decode(bytes));
  demand(set instanceof Map, "a key set that is no object");
  const [tenantId, keys] = [set.get("tenant_id"), set.get("keys")];
  demand(typeof tenantId === "string" && /^[A-Za-z0-9._:-]{1,128}$/.test(tenantId), "no tenant_id");
  demand(Array.isArray(keys) && keys.every((key) => key instanceof Map), "keys that are no list of objects");
  const found = new Map();
  for (const key of keys.filter(isUsable)) {
    demand(!found.has(key.get("kid")), "a kid twice");
    const trusted = !key.has("status") || ["ACTIVE", "ROTATED"].includes(key.get("status"));
    found.set(key.get("kid"), { trusted, jwk: { kty: "OKP", crv: "Ed25519", x: key.get("x") } });
  }
  return { tenantId, keys: found };
}

function isUsable(key) {
  const [kid, x, operations] = ["kid", "x", "key_ops"].map((name) => key.get(name));
  return (
    key.get("kty") === "OKP" && key.get("crv") === "Ed25519" && !key.has("d") &&
    (!key.has("use") || key.get("use") === "sig") && (!key.has("alg") || key.get("alg") === "EdDSA") &&
    (!key.has("key_ops") || (Array.isArray(operations) && operations.includes("verify"))) &&
    typeof kid === "string" && kid !== "" && typeof x === "string" && isPoint(x)
  );
}

function isPoint(x) {
  const bytes = Buffer.from(x, "base64url");
  if (bytes.length !== 32 || bytes.toString("base64url") !== x) return false;
  const y = BigInt.asUintN(255, BigInt(`0x${bytes.reverse().toString("hex")}`));
  return y < PRIME && !SMALL_ORDER.has(y);
}

/** Returns the verdict on one document, or throws Malformed (5.2). */
export function verdict(document, { tenantId, keys }) {
  const optional = ["algorithm", "payloadType", "payload", "proof"];
  const given = members(parse(document), ["span", "signature", "keyId"], optional);
  const signature = sized(given.signature, 64);
  const keyId = text(given.keyId);
  const span = canonicalSpan(given.span, tenantId, keyId);
  const proof = "proof" in given ? readProof(given.proof) : undefined;
  const payloadType = proof ? TREE_HEAD : SPAN;
  demand(!("payloadType" in given) || given.payloadType === payloadType, "another payloadType");
  demand(!("algorithm" in given) || given.algorithm === "Ed25519", "another algorithm");
  if ("payload" in given) base64(given.payload);

  const key = keys.get(keyId);
  if (!key) return "UNKNOWN_KEY";
  if (!key.trusted) return "KEY_REVOKED";
  if (proof && !isLeaf(span, proof)) return "BAD_SIGNATURE";
  const payload = proof ? treeHead(tenantId, keyId, proof) : span;
  const signed = Buffer.concat([Buffer.from(`DSSEv1 ${payloadType.length} ${payloadType} ${payload.length} `), payload]);
  const good = verifyEd25519(null, signed, createPublicKey({ key: key.jwk, format: "jwk" }), signature);
  return good ? "VALID" : "BAD_SIGNATURE";
}

function treeHead(tenantId, keyId, { rootHash, signTime, treeSize }) {
  const members = { keyId, rootHash: rootHash.toString("hex"), signTimeUnixNano: String(signTime), tenantId, treeSize: String(treeSize) };
  return Buffer.from(JSON.stringify(members)); // in the order of their names
}

/** Returns the documents of a file: one, or one on each line (5.1). */
function documents(whole) {
  const lines = whole.replace(/\n$/, "").split("\n");
  return !isJson(whole) && isJson(lines[0]) ? lines : [whole];
}

function isJson(found) {
  try {
    parse(found);
    return true;
  } catch {
    return false;
  }
}

/** Returns the verdict on a document of a file, MALFORMED and the reason included. */
export function judged(document, keySet) {
  try {
    return verdict(document, keySet);
  } catch (error) {
    if (!(error instanceof Malformed)) throw error;
    return `MALFORMED: ${error.message}`;
  }
}

function main(keySetFile, file) {
  let keySet, found;
  try {
    keySet = readKeySet(readFileSync(keySetFile));
    found = documents(decode(readFileSync(file)));
  } catch (error) {
    console.error(error.message);
    return 2;
  }
  const verdicts = found.map((document) => judged(document, keySet));
  verdicts.forEach((each, number) => console.log(`${number + 1}: ${each}`));
  return verdicts.length && verdicts.every((each) => each === "VALID") ? 0 : 1;
}

if (process.argv[1] && realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  process.exitCode = main(process.argv[2], process.argv[3]);
}

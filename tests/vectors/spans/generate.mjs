// Writes maximal.json, refused.json and trees.json: `node tests/vectors/spans/generate.mjs`, with nothing but Node.js.
//
// Nothing of this project computes a vector. RFC 8785 is defined by ECMAScript's own JSON.stringify and order of strings,
// Ed25519 and SHA-256 are OpenSSL's, and the Merkle tree is the recursive definition of RFC 9162, section 2.1. Seeds and
// ids are hashes of the vectors' names, so that a second run writes the same bytes. The vectors are frozen: a change of
// them is a new format.

import { createHash, createPrivateKey, createPublicKey, sign } from "node:crypto";
import { writeFileSync } from "node:fs";

const SPAN = "application/vnd.betrace.span.v1+json";
const TREE_HEAD = "application/vnd.betrace.tree-head.v1+json";
const MEMBERS = [
  "control", "durationNano", "error", "evidenceType", "framework", "name", "parentSpanId", "result", "spanId",
  "startTimeUnixNano", "traceId",
];
const PKCS8 = Buffer.from("302e020100300506032b657004220420", "hex"); // RFC 8410, section 7, without the seed

const sha256 = (...parts) => createHash("sha256").update(Buffer.concat(parts)).digest();
const drawn = (text, bytes) => sha256(Buffer.from(text)).subarray(0, bytes);

function canonicalJson(value) {
  if (Array.isArray(value)) return `[${value.map(canonicalJson).join(",")}]`;
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  const members = Object.keys(value).sort().map((name) => `${JSON.stringify(name)}:${canonicalJson(value[name])}`);
  return `{${members.join(",")}}`;
}

function canonicalSpan(tenantId, keyId, span) {
  const unset = Object.fromEntries(MEMBERS.map((name) => [name, null]));
  return canonicalJson({ ...unset, attributes: {}, ...span, tenantId, keyId });
}

function keyOf(name) {
  const seed = drawn(`betrace-kms vector seed: ${name}`, 32);
  const key = createPrivateKey({ key: Buffer.concat([PKCS8, seed]), format: "der", type: "pkcs8" });
  const publicKey = Buffer.from(createPublicKey(key).export({ format: "jwk" }).x, "base64url");
  return { key, keyId: drawn(`betrace-kms vector key id: ${name}`, 16).toString("hex"), seed, publicKey };
}

function signature(key, payloadType, text) {
  const payload = Buffer.from(text);
  const head = Buffer.from(`DSSEv1 ${Buffer.byteLength(payloadType)} ${payloadType} ${payload.length} `);
  return sign(null, Buffer.concat([head, payload]), key).toString("hex");
}

// RFC 9162, sections 2.1.1 and 2.1.3.1, as they are written there.
function split(n) {
  let k = 1;
  while (2 * k < n) k *= 2;
  return k;
}

function treeHash(leaves) {
  if (leaves.length === 1) return sha256(Buffer.from([0]), leaves[0]);
  const k = split(leaves.length);
  return sha256(Buffer.from([1]), treeHash(leaves.slice(0, k)), treeHash(leaves.slice(k)));
}

function path(m, leaves) {
  if (leaves.length === 1) return [];
  const k = split(leaves.length);
  return m < k
    ? [...path(m, leaves.slice(0, k)), treeHash(leaves.slice(k))]
    : [...path(m - k, leaves.slice(k)), treeHash(leaves.slice(0, k))];
}

function spanVector(name, tenantId, span) {
  const { key, keyId, seed, publicKey } = keyOf(name);
  const canonical = canonicalSpan(tenantId, keyId, span);
  return {
    name, tenant_id: tenantId, key_id: keyId, span, canonical, seed: seed.toString("hex"),
    public_key: publicKey.toString("hex"), signature: signature(key, SPAN, canonical),
  };
}

function treeVector(size, tenantId, signTime, indices) {
  const name = `tree of ${size}`;
  const { key, keyId, seed, publicKey } = keyOf(name);
  const payloads = Array.from({ length: size }, (_, index) =>
    canonicalSpan(tenantId, keyId, {
      traceId: drawn(`${name}: trace`, 16).toString("hex"),
      spanId: drawn(`${name}: span ${index}`, 8).toString("hex"),
      ...(size < 100 && { name: "batch 😀", control: "CC6_1", framework: "soc2" }),
      attributes: { n: { intValue: String(index) } },
    }),
  );
  const leaves = payloads.map((payload) => Buffer.from(payload));
  const rootHash = treeHash(leaves).toString("hex");
  const head = canonicalJson({
    keyId, rootHash, signTimeUnixNano: signTime.nano, tenantId, treeSize: String(size),
  });
  return {
    name, tenant_id: tenantId, key_id: keyId, seed: seed.toString("hex"), public_key: publicKey.toString("hex"),
    sign_time: signTime.text, payloads, root_hash: rootHash, head, signature: signature(key, TREE_HEAD, head),
    proofs: indices.map((index) => ({
      leaf_index: index, hashes: path(index, leaves).map((hash) => hash.toString("hex")),
    })),
  };
}

// Protobuf's wire format (protobuf.dev/programming-guides/encoding), as much as span.proto needs.
const varint = (number) => {
  const bytes = [];
  for (let rest = BigInt.asUintN(64, BigInt(number)); bytes.push(Number(rest & 127n)), (rest >>= 7n); ) {
    bytes[bytes.length - 1] |= 128;
  }
  return Buffer.from(bytes);
};
const field = (number, content) =>
  typeof content === "number"
    ? Buffer.concat([varint(number << 3), varint(content)])
    : Buffer.concat([varint((number << 3) | 2), varint(content.length), content]);
const join = (...fields) => Buffer.concat(fields);
const double = (hex) => Buffer.concat([varint((4 << 3) | 1), Buffer.from(hex, "hex").reverse()]);

function refusedVectors() {
  const traceId = field(1, drawn("refused: trace", 16));
  const spanId = field(2, drawn("refused: span", 8));
  const attribute = (value) => field(12, join(field(1, Buffer.from("a")), field(2, value)));
  const text = (value) => field(1, Buffer.from(value));
  const pair = (key, value) => field(1, join(field(1, Buffer.from(key)), field(2, value)));
  const unknown = field(15, Buffer.from("x"));
  const spans = {
    "NaN": attribute(double("7ff8000000000000")),
    "NaN with a payload": attribute(double("fff0000000000001")),
    "infinity": attribute(double("7ff0000000000000")),
    "negative infinity": attribute(double("fff0000000000000")),
    "NaN in a list": attribute(field(5, field(1, double("7ff8000000000000")))),
    "duplicate key": attribute(field(6, join(pair("k", text("1")), pair("k", text("2"))))),
    "duplicate key with equal values": attribute(field(6, join(pair("k", text("1")), pair("k", text("1"))))),
    "unknown field of the span": unknown,
    "unknown field of a value": attribute(join(text("v"), unknown)),
    "unknown field of a time": field(8, unknown),
    "parent id of no bytes": field(3, Buffer.alloc(0)),
    "parent id of zeros": field(3, Buffer.alloc(8)),
    "start before year 1": field(8, field(1, -62135596801)),
    "start after year 9999": field(8, field(1, 253402300800)),
    "start with 10^9 nanoseconds": field(8, field(2, 1000000000)),
    "start with negative nanoseconds": field(8, field(2, -1)),
    "duration of two signs": field(9, join(field(1, 1), field(2, -1))),
    "duration of 315,576,000,001 seconds": field(9, field(1, 315576000001)),
  };
  return [
    { name: "no trace id", wire: spanId },
    { name: "trace id of 15 bytes", wire: join(field(1, Buffer.alloc(15, 1)), spanId) },
    { name: "trace id of zeros", wire: join(field(1, Buffer.alloc(16)), spanId) },
    { name: "no span id", wire: traceId },
    { name: "span id of 9 bytes", wire: join(traceId, field(2, Buffer.alloc(9, 1))) },
    { name: "span id of zeros", wire: join(traceId, field(2, Buffer.alloc(8))) },
    ...Object.entries(spans).map(([name, rest]) => ({ name, wire: join(traceId, spanId, rest) })),
  ].map(({ name, wire }) => ({ name, wire: wire.toString("hex") }));
}

function write(file, about, vectors) {
  writeFileSync(new URL(file, import.meta.url), `${JSON.stringify({ about, vectors }, null, 2)}\n`);
}

const ids = { traceId: "0af7651916cd43dd8448eb211c80319c", spanId: "b7ad6b7169203331" };
const nested = (depth) => (depth ? { arrayValue: { values: [nested(depth - 1)] } } : { stringValue: "deep" });
const all = (size) => [...Array(size).keys()];
const long = "a\"\\\n\u0001é€😀".repeat(100);

write("maximal.json", "Spans with large members, frozen; as spans.json, computed by generate.mjs.", [
  spanVector("longest tenant id", "aZ09._:-".repeat(16), ids),
  spanVector("long texts", "acme", {
    ...ids, name: long, framework: long, control: long, evidenceType: long, result: long, error: long,
    attributes: { [long]: { stringValue: long } },
  }),
  spanVector("128 attributes", "acme", {
    ...ids, attributes: Object.fromEntries(all(128).map((n) => [`a${n}`, { intValue: `${n}` }])),
  }),
  spanVector("4 KiB of bytes", "acme", {
    ...ids, attributes: { raw: { bytesValue: Buffer.from(all(4096).map((n) => n % 251)).toString("base64") } },
  }),
  spanVector("values 20 deep", "acme", { ...ids, attributes: { deep: nested(20) } }),
]);
write(
  "refused.json",
  "Spans that have no canonical form and are never signed, frozen; computed by generate.mjs. wire is the hexadecimal " +
    "form of a betrace.kms.v1.ComplianceSpan in protobuf's wire format.",
  refusedVectors(),
);
write(
  "trees.json",
  "Batch proofs (BATCH_PROOF), frozen; computed by generate.mjs. payloads are the canonical spans in order, head is the " +
    "tree head: both are text (hash and sign their UTF-8); sign_time is RFC 3339, the rest is hexadecimal.",
  [
    treeVector(1, "acme", { text: "2024-01-02T03:04:05Z", nano: "1704164645000000000" }, all(1)),
    treeVector(2, "acme", { text: "1970-01-01T00:00:00Z", nano: "0" }, all(2)),
    treeVector(3, "tenant-1", { text: "2024-02-29T23:59:59.123456789Z", nano: "1709251199123456789" }, all(3)),
    treeVector(7, "a.b:c_d-e", { text: "2038-01-19T03:14:08.500Z", nano: "2147483648500000000" }, all(7)),
    treeVector(100, "acme", { text: "9999-12-31T23:59:59.999999999Z", nano: "253402300799999999999" },
      [0, 1, 63, 64, 95, 96, 98, 99]),
  ],
);

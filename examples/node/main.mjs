// Makes the main calls of a betrace-kms daemon: node main.mjs TENANT TARGET...
//
// A target is host:port or unix:/path. KMS_TOKEN_FILE names the file of a bearer token, where the daemon wants one.

import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";

import { status } from "@grpc/grpc-js";

import { Coalescer } from "./coalescer.mjs";
import { Kms } from "./kms.mjs";

const PAYLOAD_BYTES = 4 << 20; // the most that a daemon takes unless configured otherwise

let [calls, failed] = [0, 0];

async function call(name, make) {
  calls += 1;
  let found;
  try {
    found = await make();
  } catch (error) {
    failed += 1;
    found = `FAILED: ${error.reason ?? ""} ${error.message}`;
  }
  console.log(`  ${name.padEnd(16)} ${found}`);
}

function accepted(results) {
  const refusal = results.map((result) => result.status).find((each) => each?.code);
  if (refusal) throw Object.assign(new Error(refusal.message), { reason: refusal.reason });
  return results;
}

const span = (name) => ({
  trace_id: randomBytes(16),
  span_id: randomBytes(8),
  name,
  framework: "soc2",
  attributes: { user: { string_value: "alice" } },
});

async function encryption(kms, tenant_id) {
  const email = { field: "email" };
  const plaintext = randomBytes(PAYLOAD_BYTES);
  let key, sealed;
  await call("GenerateDataKey", async () => {
    key = await kms.call("GenerateDataKey", { tenant_id, key_spec: "AES_256" });
    return `${key.plaintext.length} bytes, and ${key.ciphertext_blob.length} wrapped`;
  });
  await call("Decrypt", async () => {
    const opened = await kms.call("Decrypt", { tenant_id, ciphertext_blob: key.ciphertext_blob });
    assert.ok(opened.plaintext.equals(key.plaintext));
    return "the data key";
  });
  await call("Encrypt", async () => {
    sealed = await kms.call("Encrypt", { tenant_id, plaintext, encryption_context: email });
    return `${plaintext.length} bytes in ${sealed.ciphertext_blob.length}`;
  });
  await call("Decrypt", async () => {
    const request = { tenant_id, ciphertext_blob: sealed.ciphertext_blob, encryption_context: email };
    assert.ok((await kms.call("Decrypt", request)).plaintext.equals(plaintext));
    return "the payload";
  });
  await call("Decrypt", async () => {
    const without = kms.call("Decrypt", { tenant_id, ciphertext_blob: sealed.ciphertext_blob });
    await assert.rejects(without, { code: status.INVALID_ARGUMENT, reason: "CIPHERTEXT_DOES_NOT_OPEN" });
    return "refused without its context: CIPHERTEXT_DOES_NOT_OPEN";
  });
  await call("ReEncrypt", async () => {
    const request = { tenant_id, ciphertext_blob: key.ciphertext_blob, destination_encryption_context: email };
    return `${(await kms.call("ReEncrypt", request)).ciphertext_blob.length} bytes`;
  });
}

async function batches(kms, tenant_id) {
  const items = Array.from({ length: 10 }, (_, at) => ({
    plaintext: Buffer.from(`payload ${at}`),
    encryption_context: { record: String(at) },
  }));
  let sealed;
  await call("EncryptBatch", async () => {
    sealed = accepted(await kms.batch("EncryptBatch", { tenant_id }, "items", items));
    return `${sealed.length} payloads`;
  });
  await call("DecryptBatch", async () => {
    const ciphertexts = sealed.map(({ ciphertext_blob }, at) => ({ ...items[at], plaintext: undefined, ciphertext_blob }));
    const opened = accepted(await kms.batch("DecryptBatch", { tenant_id }, "items", ciphertexts));
    opened.forEach(({ plaintext }, at) => assert.ok(plaintext.equals(items[at].plaintext)));
    return `${opened.length} payloads`;
  });
}

async function signatures(kms, tenant_id) {
  const one = span("user.login");
  let signed;
  await call("SignSpan", async () => {
    signed = await kms.call("SignSpan", { tenant_id, span: one });
    return `by key ${signed.key_id}`;
  });
  await call("VerifySpan", async () => {
    const { signature, key_id } = signed;
    const verdict = await kms.call("VerifySpan", { tenant_id, span: one, signature, key_id });
    assert.ok(verdict.valid);
    return verdict.reason;
  });
  const spans = ["one", "two", "three"].map(span);
  await call("SignSpans", async () => {
    signed = accepted((await kms.call("SignSpans", { tenant_id, spans, mode: "BATCH_PROOF" })).results);
    return "one signature, and proofs";
  });
  await verify(kms, tenant_id, spans, signed);
  await call("GetPublicKeys", async () => `${(await kms.call("GetPublicKeys", { tenant_id })).keys.length}`);
}

async function verify(kms, tenant_id, spans, signed) {
  await call("VerifySpans", async () => {
    const batch = signed.map(({ signature, key_id, proof }, at) => ({ span: spans[at], signature, key_id, proof }));
    const { results } = await kms.call("VerifySpans", { tenant_id, spans: batch });
    assert.ok(accepted(results).every(({ valid }) => valid));
    return `${results.length} VALID`;
  });
}

async function hashes(kms, tenant_id) {
  const request = { tenant_id, purpose: "users.email", message: Buffer.from("alice@example.com") };
  let mac;
  await call("GenerateMac", async () => {
    ({ mac } = await kms.call("GenerateMac", request));
    return `${mac.length} bytes`;
  });
  await call("VerifyMac", async () => {
    assert.ok((await kms.call("VerifyMac", { ...request, mac })).mac_valid);
    return "valid";
  });
}

/** Makes a hundred calls at once: they travel as a few batches, and each gets its own result. */
async function coalesced(kms, tenant_id) {
  let batches = 0;
  const coalescer = new Coalescer((spans) => {
    batches += 1;
    return kms.batch("SignSpans", { tenant_id }, "spans", spans);
  });
  const spans = Array.from({ length: 100 }, (_, at) => span(`span ${at}`));
  let signed = [];
  await call("SignSpan x 100", async () => {
    signed = await Promise.all(spans.map((each) => coalescer.call(each)));
    return `in ${batches} batches`;
  });
  await verify(kms, tenant_id, spans, signed);
}

const [tenant, ...targets] = process.argv.slice(2);
if (!targets.length) {
  console.error("usage: node main.mjs TENANT TARGET...");
  process.exit(2);
}
for (const target of targets) {
  console.log(target);
  const kms = new Kms(target, { tokenFile: process.env.KMS_TOKEN_FILE });
  await call("Health.Check", () => kms.check());
  for (const part of [encryption, batches, signatures, hashes, coalesced]) await part(kms, tenant);
  kms.close();
}
console.log(`${calls} calls made, ${failed} failed`);
process.exitCode = failed ? 1 : 0;

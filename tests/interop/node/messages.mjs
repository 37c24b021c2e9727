// Seals and opens messages with the official AWS Encryption SDK for JavaScript.
//
// One JSON request a line on stdin, one JSON answer a line on stdout, in the same order:
//
//   {"op": "seal", "keys": [ARN, ...], "endpoint": URL, "suite": 1144, "frameLength": 4096, "context": {}, "data": BASE64}
//   {"op": "open", "keys": [ARN, ...], "endpoint": URL, "data": BASE64}
//
// An answer is {"data": BASE64, "context": {...}}, or {"error": TEXT}. The first key makes the data key, and the others
// wrap it too.

import { createInterface } from 'node:readline'
import { buildClient, CommitmentPolicy, getClient, KMS, KmsKeyringNode } from '@aws-crypto/client-node'

const { encrypt, decrypt } = buildClient(CommitmentPolicy.REQUIRE_ENCRYPT_REQUIRE_DECRYPT)
const credentials = { accessKeyId: 'testing', secretAccessKey: 'testing' }
const clients = new Map()

function client(endpoint, region) {
  const name = `${region} ${endpoint}`
  if (!clients.has(name)) clients.set(name, getClient(KMS, { endpoint, credentials })(region))
  return clients.get(name)
}

async function answer({ op, keys, endpoint, suite, frameLength, context, data }) {
  const [generatorKeyId, ...keyIds] = keys
  const keyring = new KmsKeyringNode({ generatorKeyId, keyIds, clientProvider: (region) => client(endpoint, region) })
  const given = Buffer.from(data, 'base64')
  if (op === 'seal') {
    const sealed = await encrypt(keyring, given, { suiteId: suite, frameLength, encryptionContext: context })
    return { data: sealed.result.toString('base64'), context: sealed.messageHeader.encryptionContext }
  }
  const opened = await decrypt(keyring, given)
  return { data: opened.plaintext.toString('base64'), context: opened.messageHeader.encryptionContext }
}

for await (const line of createInterface({ input: process.stdin })) {
  const answered = await answer(JSON.parse(line)).catch((error) => ({ error: String(error) }))
  process.stdout.write(`${JSON.stringify(answered)}\n`)
}

// Prints the verdict of examples/node/verify-spans.mjs for each line of the standard input, {"keys": ..., "document": ...}
// in base64: one process for thousands of documents.

import { createInterface } from "node:readline";

import { Malformed, decode } from "../../../examples/node/strict-json.mjs";
import { judged, readKeySet } from "../../../examples/node/verify-spans.mjs";

for await (const line of createInterface({ input: process.stdin })) {
  const { keys, document } = JSON.parse(line);
  try {
    console.log(judged(decode(Buffer.from(document, "base64")), readKeySet(Buffer.from(keys, "base64"))));
  } catch (error) {
    if (!(error instanceof Malformed)) throw error;
    console.log(`MALFORMED: ${error.message}`);
  }
}

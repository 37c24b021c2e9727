// A client of the daemon for grpc-js: limits, deadlines, retries, tokens and the details of errors.

import { readFile } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";

import grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";
import { protoPath as healthProto } from "grpc-health-check";

const DEADLINE = 10_000; // milliseconds of a call, its repetitions included
const RECEIVE_LIMIT = 8 << 20; // an answer is longer than the payload of 4 MiB in it; the default is 4,194,304 bytes
const PROTOS = fileURLToPath(new URL("../../protos", import.meta.url));
const DETAILS = fileURLToPath(new URL("google-rpc.proto", import.meta.url));

// gRPC repeats what is UNAVAILABLE; what is RESOURCE_EXHAUSTED is for call(), because its RetryInfo has the time to wait.
const SERVICE_CONFIG = `{
  "methodConfig": [
    {
      "name": [{"service": "betrace.kms.v1.KeyManagementService"}],
      "waitForReady": true,
      "retryPolicy": {
        "maxAttempts": 3,
        "initialBackoff": "0.1s",
        "maxBackoff": "1s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"]
      }
    }
  ]
}`;

const definitions = loadSync([`${PROTOS}/betrace/kms/v1/key_management.proto`, healthProto, DETAILS], {
  includeDirs: [PROTOS],
  keepCase: true,
  longs: String,
  enums: String,
  defaults: true,
  oneofs: true,
});
const { betrace, grpc: { health } } = grpc.loadPackageDefinition(definitions);

export class Kms {
  #channel;
  #tokenFile;

  /** Connects to host:port or unix:/path, and sends the token of a file, if there is one. */
  constructor(target, { tokenFile } = {}) {
    const options = {
      "grpc.service_config": SERVICE_CONFIG,
      "grpc.max_receive_message_length": RECEIVE_LIMIT,
      "grpc.initial_reconnect_backoff_ms": 100,
      "grpc.max_reconnect_backoff_ms": 1000, // after an outage it would wait for up to two minutes
      "grpc.enable_http_proxy": 0,
    };
    const credentials = grpc.credentials.createInsecure(); // loopback and unix sockets
    this.#channel = new betrace.kms.v1.KeyManagementService(target, credentials, options);
    this.health = new health.v1.Health(target, credentials, options);
    this.#tokenFile = tokenFile;
  }

  close() {
    this.#channel.close();
    this.health.close();
  }

  /** Makes a call. Repeats what is RESOURCE_EXHAUSTED as long after as RetryInfo says, and twice as long each further time. */
  async call(method, request) {
    const deadline = Date.now() + DEADLINE;
    for (let factor = 1; ; factor *= 2) {
      try {
        return await unary(this.#channel, method, request, await this.#metadata(), deadline);
      } catch (error) {
        const { reason, delay } = details(error);
        const mayRepeat = error.code === grpc.status.RESOURCE_EXHAUSTED && delay !== undefined;
        if (!mayRepeat || !(await pause(delay * factor, deadline, reason))) {
          throw Object.assign(error, { reason });
        }
      }
    }
  }

  /** Sends the items of a batch call, and again those that were refused with a retry delay: not the whole batch. */
  async batch(method, request, field, items) {
    const deadline = Date.now() + DEADLINE;
    const results = [];
    let waiting = [...items.keys()];
    for (let factor = 1; ; factor *= 2) {
      const answer = await this.call(method, { ...request, [field]: waiting.map((index) => items[index]) });
      waiting.forEach((index, at) => (results[index] = answer.results[at]));
      waiting = waiting.filter((index) => results[index].status?.retry_delay);
      const delays = waiting.map((index) => milliseconds(results[index].status.retry_delay));
      const reason = results[waiting[0]]?.status.reason;
      if (!waiting.length || !(await pause(Math.max(...delays) * factor, deadline, reason))) {
        return results;
      }
    }
  }

  /** Returns the state of the service, such as SERVING. */
  async check() {
    const request = { service: "betrace.kms.v1.KeyManagementService" };
    return (await unary(this.health, "Check", request, new grpc.Metadata(), Date.now() + DEADLINE)).status;
  }

  async #metadata() {
    const metadata = new grpc.Metadata({ waitForReady: true }); // grpc-js does not read it from the service config
    if (this.#tokenFile) metadata.set("authorization", `Bearer ${await token(this.#tokenFile)}`);
    return metadata;
  }
}

function unary(client, method, request, metadata, deadline) {
  return new Promise((resolve, reject) => {
    client[method](request, metadata, { deadline }, (error, answer) => (error ? reject(error) : resolve(answer)));
  });
}

/** Returns the first token of a file, which is read for each call, so that a new token is sent from then on. */
async function token(file) {
  const lines = (await readFile(file, "utf8")).split("\n").map((line) => line.trim());
  const line = lines.find((each) => each && !each.startsWith("#"));
  if (!line) throw new Error("the token file has no token");
  return line.split(/\s+/).at(-1);
}

/** Waits, unless the deadline comes first. */
async function pause(delay, deadline, reason) {
  if (Date.now() + delay > deadline) return false;
  console.log(`  waits ${delay} ms: ${reason}`);
  await sleep(delay);
  return true;
}

/** Returns the daemon's name for an error, and after how many milliseconds another try may succeed, where one may. */
export function details(error) {
  const found = {};
  for (const bytes of error.metadata?.get("grpc-status-details-bin") ?? []) {
    for (const { type_url: type, value } of decoded("google.rpc.Status", bytes).details) {
      if (type.endsWith("/google.rpc.ErrorInfo")) found.reason = decoded("google.rpc.ErrorInfo", value).reason;
      if (type.endsWith("/google.rpc.RetryInfo")) {
        found.delay = milliseconds(decoded("google.rpc.RetryInfo", value).retry_delay);
      }
    }
  }
  return found;
}

const decoded = (type, bytes) => definitions[type].deserialize(bytes);
const milliseconds = ({ seconds, nanos }) => Number(seconds) * 1000 + Math.ceil(nanos / 1e6);

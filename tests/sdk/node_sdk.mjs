// Stream's server SDK for Node, unmodified: requests come as JSON lines on standard input, each a
// JavaScript expression with `client`, `call` and its values in scope; answers go to standard output.
// Usage: node node_sdk.mjs BASE_URL API_KEY API_SECRET CID

import { createInterface } from "node:readline";
import { StreamClient } from "@stream-io/node-sdk";

const [baseUrl, apiKey, secret, cid] = process.argv.slice(2);
const client = new StreamClient(apiKey, secret, { basePath: baseUrl, timeout: 5000 });
const call = client.video.call(...cid.split(":"));
const Expression = Object.getPrototypeOf(async () => {}).constructor;

async function run({ source, values }) {
  const evaluate = new Expression("client", "call", ...Object.keys(values), `return (${source});`);
  return evaluate(client, call, ...Object.values(values));
}

for await (const line of createInterface({ input: process.stdin })) {
  try {
    console.log(JSON.stringify({ value: (await run(JSON.parse(line))) ?? null }));
  } catch (error) {
    const { message, code, metadata } = error;
    console.log(JSON.stringify({ error: { message, code, status: metadata?.responseCode } }));
  }
}

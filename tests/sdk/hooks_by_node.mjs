// Stream's server SDK for Node, unmodified: configures hooks and has a queue checked.
// Usage: node hooks_by_node.mjs BASE_URL API_KEY API_SECRET QUEUE_URL

import { StreamClient } from "@stream-io/node-sdk";

const [baseUrl, apiKey, secret, queueUrl] = process.argv.slice(2);
const client = new StreamClient(apiKey, secret, { basePath: baseUrl, timeout: 5000 });
const hook = { hook_type: "webhook", webhook_url: "https://app.example/events", enabled: true };

await client.updateApp({ event_hooks: [hook, { ...hook, event_types: ["custom"] }] });
const first = await client.getApp();
const kept = { ...first.app.event_hooks[0], enabled: false };
await client.updateApp({ event_hooks: [kept] });
const second = await client.getApp();
const keys = { sqs_key: "AKIA", sqs_secret: "secret" };
const found = await client.checkSQS({ ...keys, sqs_url: queueUrl });
const missing = await client.checkSQS({ ...keys, sqs_url: `${queueUrl}-not` });
let refused;
try {
  await client.updateApp({ event_hooks: [{ ...hook, webhook_url: "http://169.254.169.254/" }] });
} catch (error) {
  refused = { message: error.message, code: error.code };
}
await client.updateApp({ event_hooks: [] });
console.log(
  JSON.stringify({
    first: first.app.event_hooks,
    second: second.app.event_hooks,
    left: (await client.getApp()).app.event_hooks,
    found,
    missing,
    refused,
  }),
);

// Verifies and parses deliveries with the helpers of Stream's server SDK for Node and of stream-chat.
// Usage: node webhook_helpers.mjs API_KEY API_SECRET < deliveries, a JSON list; prints a JSON list.
// A delivery is {kind: "webhook", body: base64, plain: base64, signature}, or {kind: "sqs" | "sns", text}.

import { readFileSync } from "node:fs";

import { StreamClient } from "@stream-io/node-sdk";
import { StreamChat } from "stream-chat";

const [apiKey, secret] = process.argv.slice(2);
const sdks = { node: new StreamClient(apiKey, secret), chat: new StreamChat(apiKey, secret) };

function parsed(sdk, delivery) {
  switch (delivery.kind) {
    case "webhook":
      return sdk.verifyAndParseWebhook(Buffer.from(delivery.body, "base64"), delivery.signature);
    case "sqs":
      return sdk.parseSqs(delivery.text);
    case "sns":
      return sdk.parseSns(delivery.text);
  }
}

function looked(sdk, delivery) {
  const event = parsed(sdk, delivery);
  const at = event.created_at;
  const report = {
    type: event.type,
    call_cid: event.call_cid,
    custom: event.custom,
    created_ms: typeof at === "number" ? at / 1e6 : new Date(at).getTime(),
  };
  if (delivery.kind === "webhook") {
    const plain = Buffer.from(delivery.plain, "base64");
    report.verified = sdk.verifyWebhook(plain, delivery.signature);
    report.forged = sdk.verifyWebhook(plain, delivery.signature.replace(/^./, (digit) => (digit === "0" ? "1" : "0")));
  }
  return report;
}

const deliveries = JSON.parse(readFileSync(0, "utf8"));
console.log(
  JSON.stringify(
    deliveries.map((delivery) =>
      Object.fromEntries(Object.entries(sdks).map(([name, sdk]) => [name, looked(sdk, delivery)])),
    ),
  ),
);

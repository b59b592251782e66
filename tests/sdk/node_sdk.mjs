// Stream's server SDK for Node, unmodified: does what a backend does and prints the answers.
// Usage: node node_sdk.mjs BASE_URL API_KEY API_SECRET CALL_ID

import { StreamClient } from "@stream-io/node-sdk";

const [baseUrl, apiKey, secret, callId] = process.argv.slice(2);
const client = new StreamClient(apiKey, secret, { basePath: baseUrl, timeout: 5000 });

const users = await client.upsertUsers([{ id: "jane", name: "Jane" }]);
const call = client.video.call("default", callId);
const created = await call.getOrCreate({ data: { created_by_id: "jane" } });
const found = await call.get();
await call.sendCallEvent({ user_id: "jane", custom: { "render-animation": "hearts" } });
let refused;
try {
  await call.sendCallEvent({ custom: {} });
} catch (error) {
  refused = { message: error.message, code: error.code };
}
console.log(
  JSON.stringify({
    user: users.users.jane,
    cid: created.call.cid,
    created_at: new Date(created.call.created_at).getTime(),
    same: found.call.cid === created.call.cid,
    token_of_user: client.generateUserToken({ user_id: "jane" }),
    refused,
  }),
);

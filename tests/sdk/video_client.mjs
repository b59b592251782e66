// Stream's video client in Node: requests come as JSON lines on standard input, reports go as JSON
// lines to standard output. Usage: node video_client.mjs BASE_URL OPTIONS, the SDK's own in JSON.

import { createInterface } from "node:readline";
import WebSocket from "ws";
import { makeSession, perform } from "./session.mjs";

const [baseUrl, options] = process.argv.slice(2);
const tell = (what, more = {}) => console.log(JSON.stringify({ what, ...more }));

// A refused login leaves rejections behind that nobody awaits; Node would end by the first.
process.on("unhandledRejection", (error) => tell("unhandled", { message: String(error) }));

const session = makeSession({
  tell,
  baseURL: `${baseUrl}/video`,
  locationHintUrl: `${baseUrl}/hint`,
  WebSocketImpl: WebSocket,
  allowServerSideConnect: true,
  ...JSON.parse(options),
});

const busy = new Set();
for await (const line of createInterface({ input: process.stdin })) {
  const { id, ...request } = JSON.parse(line);
  const task = perform(session, request).then(({ what, ...more }) => tell(what, { id, ...more }));
  busy.add(task.finally(() => busy.delete(task)));
}
await session.client.disconnectUser();
process.exit(0);

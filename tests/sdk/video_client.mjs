// Stream's browser SDK, unmodified, in Node: driven by lines on standard input, reporting in JSON
// lines on standard output. Usage: node video_client.mjs BASE_URL API_KEY USER
// where USER is {"id","name","token"}, or {"id","name","type":"guest"}.

import { createInterface } from "node:readline";
import { StreamVideoClient } from "@stream-io/video-client";
import WebSocket from "ws";

const [baseUrl, apiKey, userJson] = process.argv.slice(2);
const { token, ...user } = JSON.parse(userJson);
const tell = (what, more = {}) => console.log(JSON.stringify({ what, ...more }));

const client = new StreamVideoClient(apiKey, {
  baseURL: `${baseUrl}/video`,
  WebSocketImpl: WebSocket,
  allowServerSideConnect: true,
  clientEventsReportingEnabled: process.env.TELEMETRY === "on",
  logLevel: "error",
});

let call;

const commands = {
  async connect() {
    if (user.type === "guest") await client.connectUser(user);
    else await client.connectUser(user, token);
    return { user_id: client.state.connectedUser?.id };
  },
  async watch([type, id]) {
    call = client.call(type, id);
    for (const kind of ["custom", "call.reaction_new"])
      call.on(kind, (event) => tell("event", { event }));
    const state = await call.getOrCreate();
    return {
      cid: state.call.cid,
      created: state.created,
      created_at: new Date(state.call.created_at).getTime(),
      watching: call.watching,
    };
  },
  async send([custom]) {
    await call.sendCustomEvent(JSON.parse(custom));
    return {};
  },
  async get() {
    const state = await call.get();
    return { cid: state.call.cid };
  },
};

client.on("connection.changed", (event) => tell("connection", { online: event.online }));
tell("started");

for await (const line of createInterface({ input: process.stdin })) {
  const [name, ...words] = line.split(" ");
  if (name === "quit") break;
  try {
    tell("done", await commands[name](words));
  } catch (error) {
    tell("failed", { message: String(error.message ?? error) });
  }
}
await client.disconnectUser();
process.exit(0);

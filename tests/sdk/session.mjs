// One user with Stream's video client, unmodified: the same in Node and in a page. What comes to it
// is told as it comes; what it is to do is JavaScript, with `client`, `call` and whatever values are
// given in scope.

import { StreamVideoClient } from "@stream-io/video-client";

const Expression = Object.getPrototypeOf(async () => {}).constructor;

/** `tell(what, more)` reports: "event", "connection", "token_asked", "unhandled". */
export function makeSession({ apiKey, tell, ...options }) {
  const client = new StreamVideoClient(apiKey, { logLevel: "error", ...options });
  const session = { client, call: undefined, connect, watch, run };

  client.on("all", (event) => {
    if (event.type === "connection.changed") tell("connection", { online: event.online });
    else tell("event", { event });
  });

  /** With several tokens a provider gives one after the other, and the last one again and again. */
  async function connect(user, tokens) {
    const left = [...tokens];
    const provider = async () => {
      tell("token_asked");
      return left.length > 1 ? left.shift() : left[0];
    };
    const given = { 0: undefined, 1: tokens[0] };
    await client.connectUser(user, tokens.length in given ? given[tokens.length] : provider);
    return client.state.connectedUser?.id;
  }

  /** Makes a call the current one: `call` in what `run` gets. */
  async function watch(type, id) {
    session.call = client.call(type, id);
    const state = await session.call.getOrCreate();
    return {
      cid: state.call.cid,
      created: state.created,
      created_at: new Date(state.call.created_at).getTime(),
      watching: session.call.watching,
    };
  }

  async function run(source, values) {
    const names = ["client", "call", ...Object.keys(values)];
    const evaluate = new Expression(...names, `return (${source});`);
    return evaluate(client, session.call, ...Object.values(values));
  }

  return session;
}

/** Does what one request asks for and returns the report of it; an SDK's error is one too. */
export async function perform(session, { verb, args }) {
  try {
    return { what: "done", value: (await session[verb](...args)) ?? null };
  } catch (error) {
    const { message, code, status, unrecoverable } = error;
    return { what: "failed", error: { message: String(message ?? error), code, status, unrecoverable } };
  }
}

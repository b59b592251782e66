// Stream's video client in a page: a test calls `open_session` and then `perform`, both in JSON.

import { makeSession, perform } from "../session.mjs";

let session;
const tell = (what, more = {}) => window.tellTest(JSON.stringify({ what, ...more }));

window.addEventListener("unhandledrejection", (event) =>
  tell("unhandled", { message: String(event.reason) }),
);
window.open_session = (options) => {
  session = makeSession({ ...options, tell });
};
window.perform = async (text) => JSON.stringify(await perform(session, JSON.parse(text)));
